"""What strangers declare: found by name, refused where it is wrong, and named in errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from castor.app import app
from castor_configs.errors import InputError
from castor_configs.plugins import VARIABLE, Plugin, Registry, and_plugins, source_of

REGISTRY: Registry[object] = Registry(
    "schemes", {"first": 1, "second": 2}, lambda found: isinstance(found, int), "number"
)


@pytest.fixture
def declare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own.py").write_text("THIRD = 3\nTEXT = 'x'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "schemes.third = own.py:THIRD; figures.other = own.py:TEXT\n")
    return tmp_path


@pytest.mark.usefixtures("declare")
def test_those_from_outside_come_last_and_are_counted() -> None:
    assert dict(REGISTRY) == {"first": 1, "second": 2, "third": 3}
    assert len(REGISTRY) == 3
    assert REGISTRY.choose("third", "--scheme") == 3
    assert and_plugins("schemes") == ", third"


def test_the_file_of_a_plugin_is_found_without_importing_it(tmp_path, monkeypatch) -> None:
    (tmp_path / "of_a_module.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "of_a_module.py"
    for place in ("of_a_module", str(file)):
        assert source_of(Plugin("schemes", "a", place, "A", VARIABLE)) == file
    for place in ("no_such_module", "no_such.module", str(tmp_path / "missing.py"), "sys"):
        with pytest.raises(InputError, match=r"plugin a = .* cannot be found"):
            source_of(Plugin("schemes", "a", place, "A", VARIABLE))


@pytest.mark.usefixtures("declare")
def test_a_name_that_nobody_has_is_answered_with_all_that_there_are() -> None:
    with pytest.raises(InputError) as caught:
        REGISTRY.choose("thirt", "--scheme", ("none",))
    said = "--scheme: expected one of none, first, second, third, not 'thirt'; did you mean third?"
    assert str(caught.value) == said


def test_a_name_is_known_before_its_module_is_imported(
    declare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (declare / "own.py").write_text("1 / 0\n")
    assert "third" in REGISTRY
    with pytest.raises(InputError) as caught:
        REGISTRY["third"]
    assert "plugin third = own.py:THIRD (CASTOR_PLUGINS) cannot be imported" in str(caught.value)
    assert "ZeroDivisionError: division by zero" in str(caught.value)


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ("schemes.first = own.py:THIRD", "two things have the name first: .* and Castor's own"),
        (
            "schemes.a = own.py:THIRD;schemes.a = other:A",
            r"the name a: a = other:A .* and a = own.py:THIRD .*give one",
        ),
        ("schemes.a", "CASTOR_PLUGINS: expected KIND.NAME = MODULE:OBJECT"),
        ("scheme.a = own.py:THIRD", "with a KIND out of strategies, schemes"),
        ("schemes.a = own.py:FOURTH", "cannot be imported: AttributeError: .*FOURTH"),
        ("schemes.a = missing.py:A", "there is no file missing.py"),
        ("schemes.a = no_such_module:A", "ModuleNotFoundError: No module named"),
        ("schemes.a = own.py:TEXT", r"castor.schemes: plugin a = own.py:TEXT .* is no number"),
    ],
)
def test_what_is_wrong_is_said_by_name(
    declare: Path, monkeypatch: pytest.MonkeyPatch, declared: str, said: str
) -> None:
    monkeypatch.setenv(VARIABLE, declared)
    with pytest.raises(InputError, match=said):
        dict(REGISTRY)


def test_a_command_that_meets_a_broken_plugin_says_which_and_shows_no_traceback(
    declare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (declare / "own.py").write_text("import nothing_of_that_name\n")
    monkeypatch.setenv(VARIABLE, "strategies.mine = own.py:Mine")
    words = ["simulate", "four-node", "--set", "strategies.mine={}"]
    with pytest.raises(InputError, match=r"plugin mine = own.py:Mine .* cannot be imported"):
        CliRunner().invoke(app, words, catch_exceptions=False)


def test_a_variable_that_says_nothing_ends_no_command_that_needs_no_plugin() -> None:
    """Help is made when the command's modules are imported, before anything is asked."""

    def castor(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(Path(sys.executable).with_name("castor")), *words],
            env={**os.environ, VARIABLE: "schemes"},
            capture_output=True,
            text=True,
            check=False,
        )

    assert castor("train", "--help").returncode == 0
    used = castor("iterate", "four-node", "--scheme", "naive")
    assert (used.returncode, used.stdout) == (2, "")
    assert used.stderr.startswith("castor: CASTOR_PLUGINS: expected KIND.NAME = MODULE:OBJECT")
