"""Which file a name or a path means."""

from __future__ import annotations

from pathlib import Path

import pytest

from castor_configs.errors import InputError
from castor_configs.load import available_configs, find_config

ROOM = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_name_finds_the_shipped_file() -> None:
    assert find_config("clusters", "p4d").read_text() == (ROOM / "clusters/p4d.toml").read_text()


def test_a_file_of_ones_own_comes_before_the_shipped_one(folder: Path) -> None:
    own = Path("configs/clusters/p4d.toml")
    own.parent.mkdir(parents=True)
    own.touch()
    assert find_config("clusters", "p4d").samefile(own)
    beside = folder / "elsewhere" / "clusters" / "p4d.toml"
    beside.parent.mkdir(parents=True)
    beside.touch()
    experiments = folder / "elsewhere" / "experiments"
    experiments.mkdir()
    assert find_config("clusters", "p4d", relative_to=experiments).samefile(beside)


def test_a_path_goes_from_the_file_that_wrote_it(folder: Path) -> None:
    for name in ("a/c.toml", "c.toml"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    assert find_config("clusters", "c.toml").samefile(folder / "c.toml")
    assert find_config("clusters", "c.toml", relative_to=Path("a")).samefile(folder / "a/c.toml")
    assert find_config("clusters", folder / "c.toml", relative_to=Path("a")) == folder / "c.toml"


def test_a_folder_of_that_name_does_not_stand_in_the_way() -> None:
    Path("p4d").mkdir()
    assert find_config("clusters", "p4d").name == "p4d.toml"


def test_what_is_not_there_names_what_is() -> None:
    with pytest.raises(InputError) as caught:
        find_config("clusters", "p4")
    assert str(caught.value) == (
        "p4: no cluster of this name; did you mean `p4d`? (available: four-node, llama3-405b, "
        "opt-175b, p3dn, p4d, or the path of a TOML file)"
    )
    with pytest.raises(InputError, match=r"^my/gpt2-100b\.toml: no such file; did you mean `gpt2"):
        find_config("models", "my/gpt2-100b.toml")
    with pytest.raises(InputError, match=r'^"": no experiment of this name'):
        find_config("experiments", "")


def test_available_names_are_sorted_and_include_ones_own() -> None:
    Path("configs/clusters").mkdir(parents=True)
    Path("configs/clusters/aa.toml").touch()
    names = available_configs("clusters")
    assert names[0] == "aa"
    assert list(names) == sorted(names)
