"""Loading: every fault at once, with file, line, key and what was expected."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from castor_configs.errors import InputError
from castor_configs.load import load_toml
from castor_configs.quantities import Bytes, Fraction01, Nanoseconds, Seconds
from castor_configs.schema import ConfigModel, Count, Flag, Name


class Storage(ConfigModel):
    bandwidth: Annotated[int, Field(gt=0)]
    """Aggregate bandwidth of the storage. All machines share it."""
    size: Bytes = 0


class Gemini(ConfigModel):
    kind: Literal["gemini"]
    name: Name
    every: Count = 1
    replicas: Count = 2


class Strawman(ConfigModel):
    kind: Literal["strawman"]
    name: Name
    period: Seconds = 10_800.0


class Experiment(ConfigModel):
    machines: Count
    """Machines that train."""
    standbys: Annotated[int, Field(strict=True, ge=0, le=100)] = 0
    verbose: Flag = False
    placement: Literal["group", "ring"] = "group"
    iteration: Annotated[Nanoseconds, Field(gt=0)] = 1_000_000_000
    share: Fraction01 = 0.5
    storage: Storage
    strategies: tuple[Annotated[Gemini | Strawman, Field(discriminator="kind")], ...] = ()
    cluster: str | Storage = "p4d"
    rates: dict[str, Seconds] = Field(default_factory=dict)


GOOD = """\
machines = 16

[storage]
bandwidth = 20

[[strategies]]
kind = "gemini"
name = "gemini"

[[strategies]]
kind = "strawman"
name = "strawman"
period = "3h"
"""


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, so that errors show bare file names."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(text: str, name: str = "e.toml") -> Path:
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    return path


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load_toml(written(text), Experiment, overrides=overrides)
    return str(caught.value)


@pytest.mark.usefixtures("in_folder")
class TestLoading:
    def test_a_good_file_loads(self) -> None:
        experiment = load_toml(written(GOOD), Experiment)
        assert experiment.machines == 16
        assert [strategy.name for strategy in experiment.strategies] == ["gemini", "strawman"]

    def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(self) -> None:
        path = Path("windows.toml")
        path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
        assert load_toml(path, Experiment) == load_toml(written(GOOD), Experiment)

    def test_every_fault_is_told_at_once(self) -> None:
        text = """\
machines = 0
standbyes = 2
iteration = "2 months"
verbose = 1
placement = "rnig"

[storage]
size = "9.4gb"

[[strategies]]
kind = "gemini"
name = "gemini"
evry = 2

[[strategies]]
kind = "gemni"
name = "other"
"""
        assert refusal(text, "share=150%", "storage.sise=3") == (
            "11 faults:\n"
            '  --set: share: expected a share from 0 to 1, such as 0.015 or "1.5%", not "150%": '
            "it is over 1\n"
            "  --set: storage.sise: unknown key `sise`; did you mean `size`?\n"
            "  e.toml:1: machines: expected a value of at least 1, not 0\n"
            "  e.toml:2: standbyes: unknown key `standbyes`; did you mean `standbys`?\n"
            '  e.toml:3: iteration: expected a time such as "3h", "5min", "1h30min" or "15s", not '
            '"2 months": a month has 28 to 31 days: write it in days\n'
            "  e.toml:4: verbose: expected true or false, not 1\n"
            '  e.toml:5: placement: expected one of group, ring, not "rnig"; did you mean `ring`?\n'
            "  e.toml:7: storage.bandwidth: required key is missing: aggregate bandwidth of the "
            "storage\n"
            '  e.toml:8: storage.size: expected a size such as "9.4GB" or "128MiB" (a bare number '
            'is in bytes), not "9.4gb": a small b counts bits: write GB (thousands) or GiB '
            "(1024s)\n"
            "  e.toml:13: strategies.gemini.evry: unknown key `evry`; did you mean `every`?\n"
            '  e.toml:16: strategies.other.kind: expected one of gemini, strawman, not "gemni"; '
            "did you mean `gemini`?"
        )

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("machines = true", "e.toml:1: machines: expected a whole number, not true"),
            ('machines = "4"', 'e.toml:1: machines: expected a whole number, not "4"'),
            ("machines = 1.5", "e.toml:1: machines: expected a whole number, not 1.5"),
            ("machines = [4]", "e.toml:1: machines: expected a whole number, not a list"),
            ("", "e.toml: machines: required key is missing: machines that train"),
            ("machines = 1\nstandbys = 101", "expected a value of at most 100, not 101"),
            ('machines = 1\niteration = "0s"', 'iteration: expected a value over 0, not "0s"'),
            ("machines = 1\nstrategies = 3", "e.toml:2: strategies: expected a list, not 3"),
            ("machines = 1\nzzz = 3", "unknown key `zzz`; known here: cluster, iteration, mach"),
            (
                'machines = 1\nrates = {a = "1s", b = "1 parsec"}',
                "e.toml:2: rates.b: expected a time",
            ),
            (
                'machines = 1\nstrategies = [{kind="gemini", name="a"},\n{kind="gemini", name=""}]',
                "e.toml:3: strategies.1.name: must not be empty",
            ),
            (
                'machines = 1\nstrategies = [{name="a"}]',
                "e.toml:2: strategies.a.kind: required key is missing",
            ),
            (
                "machines = 1\n[cluster]\nbandwith = 1",
                "e.toml:3: cluster.bandwith: unknown key `bandwith`; did you mean `bandwidth`?",
            ),
        ],
    )
    def test_each_fault_names_its_place(self, line: str, message: str) -> None:
        assert message in refusal(f"{line}\n[storage]\nbandwidth = 1\n")

    def test_alternatives_of_a_union_that_say_less_are_left_out(self) -> None:
        text = refusal("machines = 1\nstorage.bandwidth = 1\n[cluster]\nbandwidth = 0\n")
        assert text == "e.toml:4: cluster.bandwidth: expected a value over 0, not 0"

    def test_keys_of_another_alternative_are_not_suggested(self) -> None:
        text = GOOD.replace('name = "gemini"', 'name = "gemini"\nperiod = 3')
        assert refusal(text) == (
            "e.toml:9: strategies.gemini.period: unknown key `period`; "
            "known here: every, kind, name, replicas"
        )

    def test_a_table_that_is_none_is_refused(self) -> None:
        assert "e.toml:2: storage: expected a table, not 3" in refusal("machines=1\nstorage = 3")


@pytest.mark.usefixtures("in_folder")
class TestOverrides:
    def test_values_are_toml_or_text(self) -> None:
        experiment = load_toml(
            written(GOOD),
            Experiment,
            overrides=[
                "machines=4",
                "verbose = true",
                "iteration=1.5min",
                'placement="ring"',
                "storage.size=2GB",
                "rates.a=3h",
                'rates."b.c"=5',
            ],
        )
        assert (experiment.machines, experiment.verbose, experiment.placement) == (4, True, "ring")
        assert (experiment.iteration, experiment.storage.size) == (90_000_000_000, 2_000_000_000)
        assert experiment.rates == {"a": 10_800.0, "b.c": 5.0}

    def test_entries_of_a_list_go_by_name_or_index(self) -> None:
        overrides = ["strategies.gemini.every=3", "strategies.1.period=1h"]
        experiment = load_toml(written(GOOD), Experiment, overrides=overrides)
        gemini, strawman = experiment.strategies
        assert isinstance(gemini, Gemini)
        assert isinstance(strawman, Strawman)
        assert (gemini.every, strawman.period) == (3, 3600.0)

    def test_the_last_override_wins(self) -> None:
        experiment = load_toml(written(GOOD), Experiment, overrides=["machines=4", "machines=5"])
        assert experiment.machines == 5

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("machines", "--set: expected key=value, such as cluster.machines=16, not"),
            ("=4", "--set: expected key=value"),
            ("machnes=4", "--set: machnes: unknown key `machnes`; did you mean `machines`?"),
            ("machines=4\nstandbys=3", "--set: machines: expected a whole number"),
            ("machines=", '--set: machines: expected a whole number, not ""'),
            ("machines.a=4", "--set: machines: no such key: it is a single value, not a table"),
            (
                "strategies.gemni.every=1",
                "--set: strategies: no entry `gemni`; did you mean `gemini`? "
                "(it has 2 entries: gemini, strawman)",
            ),
            ("strategies.2.every=1", "--set: strategies: no entry `2`"),
            ("strategies.gemini.evry=1", "--set: strategies.gemini.evry: unknown key `evry`"),
            ("storage=3", "--set: storage: expected a table, not 3"),
            ("storage={bandwidth=0}", "--set: storage.bandwidth: expected a value over 0, not 0"),
        ],
    )
    def test_a_wrong_override_is_told_as_a_wrong_key_is(self, override: str, message: str) -> None:
        assert message in refusal(GOOD, override)


@pytest.mark.usefixtures("in_folder")
class TestExtending:
    def test_tables_merge_and_lists_replace(self) -> None:
        written(GOOD, "parent.toml")
        child = written('extends = "parent.toml"\n[storage]\nsize = "1kB"\n', "child.toml")
        experiment = load_toml(child, Experiment)
        assert (experiment.machines, experiment.storage) == (
            16,
            Storage(bandwidth=20, size=1000),
        )
        again = written('extends = "child.toml"\nstrategies = []\n', "again.toml")
        assert load_toml(again, Experiment).strategies == ()

    def test_base_lies_under_all(self) -> None:
        base = {"machines": 2, "storage": {"bandwidth": 7, "size": 3}}
        experiment = load_toml(written("storage.size = 4"), Experiment, base=base)
        assert (experiment.machines, experiment.storage) == (2, Storage(bandwidth=7, size=4))
        assert base["storage"] == {"bandwidth": 7, "size": 3}

    def test_a_fault_is_placed_in_the_file_that_holds_it(self) -> None:
        Path("sub").mkdir()
        written("machines = 0\n[storage]\nbandwidth = 0\nsize = -1\n", "sub/parent.toml")
        text = 'extends = "sub/parent.toml"\n[storage]\nbandwidth = "x"\n'
        faults = refusal(text)
        assert "sub/parent.toml:1: machines: expected a value of at least 1" in faults
        assert "e.toml:3: storage.bandwidth: expected a whole number" in faults
        assert "sub/parent.toml:4: storage.size: expected a size" in faults

    def test_what_a_list_replaced_is_no_place_any_more(self) -> None:
        written(GOOD, "parent.toml")
        text = 'extends = "parent.toml"\n\nstrategies = [\n{kind = "gemini", every = 3}]\n'
        assert refusal(text).startswith("e.toml:4: strategies.0.name: required key is missing")

    def test_circles_and_missing_parents_are_refused(self) -> None:
        written('extends = "b.toml"', "a.toml")
        written('extends = "a.toml"', "b.toml")
        with pytest.raises(InputError, match=r"circle: a\.toml -> b\.toml -> a\.toml"):
            load_toml("a.toml", Experiment)
        assert refusal('\nextends = "c.toml"') == (
            'e.toml:2: extends: no such file: "c.toml" (looked beside e.toml)'
        )
        assert "extends: expected the path of a TOML file" in refusal("extends = 3")


@pytest.mark.usefixtures("in_folder")
class TestUnreadable:
    def test_syntax_errors_have_their_line(self) -> None:
        assert refusal("machines = 1\nstorage\n").startswith("e.toml:2: not valid TOML: ")
        assert refusal('machines = 1\nname = """a\nb').startswith("e.toml:3: not valid TOML: ")
        assert "not valid TOML" in refusal("a = 1\na = 2\n")
        assert "not valid TOML" in refusal(f"a = {'9' * 5000}\n")
        assert "nested too deeply" in refusal(f"a = {'[' * 20_000}\n")

    def test_missing_files_folders_and_other_encodings(self) -> None:
        with pytest.raises(InputError, match=r"^none\.toml: no such file$"):
            load_toml("none.toml", Experiment)
        with pytest.raises(InputError, match="this is a folder"):
            load_toml(os.curdir, Experiment)
        Path("latin.toml").write_bytes("machines = 1\n# Z\u00fcrich\n".encode("latin-1"))
        with pytest.raises(InputError, match=r"^latin\.toml:2: not UTF-8 text"):
            load_toml("latin.toml", Experiment)
