"""No file is written over what Castor did not write, nor over what is being read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from castor_configs.atomic import is_own, output_file, output_files, write_text
from castor_configs.errors import InputError


def no_attributes(*_: object) -> bytes:
    raise OSError("no extended attributes here")


@pytest.fixture(params=["attributes", "a list"])
def marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "a list":
        monkeypatch.setattr(os, "setxattr", no_attributes)
        monkeypatch.setattr(os, "getxattr", no_attributes)


@pytest.mark.usefixtures("marked")
def test_what_castor_wrote_may_be_written_again(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    assert output_file(file) == file, "nothing is there"
    for text in ("one", "two"):
        write_text(output_file(file), text)
        assert is_own(file)
    assert file.read_text() == "two"


@pytest.mark.usefixtures("marked")
@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.write_text("the user's"),
        lambda file: file.write_text(file.read_text() + "# a note\n"),
        lambda file: (file.unlink(), file.write_text("another")),
        lambda file: file.write_text(""),
    ],
)
def test_what_was_changed_since_is_the_users(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    file = tmp_path / "result.toml"
    write_text(file, "castor's\n")
    change(file)
    with pytest.raises(InputError, match="did not write it"):
        output_file(file)
    assert output_file(file, overwrite=True) == file


def test_a_file_of_the_users_stays(tmp_path: Path) -> None:
    file = tmp_path / "exp.toml"
    file.write_text("mine")
    with pytest.raises(InputError, match=r"--out: is there already.*--overwrite") as caught:
        output_file(file, key="--out")
    assert str(file) in str(caught.value)
    with pytest.raises(InputError):
        output_files(tmp_path, ["new.csv", "exp.toml"], overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["exp.toml"], "nothing half written"


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_read_is_never_written_by_whatever_name(tmp_path: Path, overwrite: bool) -> None:
    file = tmp_path / "trace.csv"
    write_text(file, "rows")
    (tmp_path / "link.csv").symlink_to(file)
    for name in ("trace.csv", "link.csv", "../" + tmp_path.name + "/trace.csv"):
        with pytest.raises(InputError, match="is read by this command"):
            output_file(tmp_path / name, overwrite=overwrite, reads=[tmp_path / "no", file])
