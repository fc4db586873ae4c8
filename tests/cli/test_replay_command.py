"""castor replay from the outside: what it says of journals, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from castor.app import app
from castor_policy.agents.worker import Worker

run = CliRunner().invoke


@pytest.fixture(scope="module")
def explored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explored") / "journals"
    result = run(app, ["explore", "--first-seed", "2", "--seeds", "1", "--journal", str(folder)])
    assert result.exit_code == 0
    return folder / "seed-2"


def test_a_run_whose_agents_would_do_the_same_again(explored: Path) -> None:
    result = run(app, ["replay", str(explored)])
    assert result.exit_code == 0
    files = sorted(explored.glob("agents/*/journal-*.jsonl"))
    assert len(files) > 5
    assert all(str(file) in result.stdout for file in files)
    assert result.stdout.count("  the same up to line ") == len(files)
    assert result.stdout.splitlines()[-1] == f"{len(files)} lives: {len(files)} the same, 0 part"
    assert "  root:   " in result.stdout


def test_an_agents_folder_and_a_file_of_it(explored: Path) -> None:
    folder = explored / "agents" / "node-1"
    assert run(app, ["replay", str(folder)]).stdout.splitlines()[-1].startswith("2 lives: ")
    (one, *_) = sorted(folder.iterdir())
    text = run(app, ["replay", str(one)]).stdout
    assert text.splitlines()[:2] == [str(one), text.splitlines()[1]]
    assert "life node-1.1 of node-1, job explored: begins at line 1" in text


def test_it_says_where_a_changed_machine_parts(
    explored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worker, "_settled", lambda _: [])
    (file,) = (explored / "agents" / "node-0").iterdir()
    result = run(app, ["replay", str(file)])
    assert result.exit_code == 1
    at = next(
        number
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if '"effects.Redundant"' in line
    )
    parts, *difference = result.stdout.splitlines()[-3:]
    assert f"  parts at line {at}: the worker, at " in parts
    assert "PlanChanged(plan=" in parts
    assert difference == ["    then  Redundant.generation = 1", "    now   -"]


def test_a_state_is_shown_as_json(explored: Path) -> None:
    (file,) = (explored / "agents" / "node-0").iterdir()
    result = run(app, ["replay", str(file), "--until", "20", "--show"])
    assert result.exit_code == 0
    shown = json.loads(result.stdout)
    assert shown["worker"]["report"]["agent"] == "node-0"
    assert set(shown) == {"worker", "root"}
    assert "  the same up to line 20" in result.stderr


def test_json_has_an_object_for_each_life(explored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = explored / "agents" / "node-0"
    (whole,) = map(json.loads, run(app, ["replay", str(folder), "--json"]).stdout.splitlines())
    assert (whole["agent"], whole["parting"], whole["torn"]) == ("node-0", None, False)
    assert whole["worker"]["events"] > 20
    assert (whole["generations"], len(whole["terms"])) == ([1, 2], 1)
    monkeypatch.setattr(Worker, "_settled", lambda _: [])
    (parted,) = map(json.loads, run(app, ["replay", str(folder), "--json"]).stdout.splitlines())
    assert parted["parting"]["by"] == "worker"
    assert parted["parting"]["line"] == parted["lines"][1] < whole["lines"][1]


def test_it_needs_no_torch_and_no_runtime(explored: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(('torch', 'deepspeed', 'etcd3'))\n"
        "sys.modules |= dict.fromkeys(('castor_runtime', 'castor_sim', 'castor_lab'))\n"
        "sys.argv = ['castor', 'replay', *sys.argv[1:]]\n"
        "from castor.app import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(explored)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "0 part" in done.stdout


def test_a_torn_line_is_said_and_a_damaged_one_is_refused(explored: Path, tmp_path: Path) -> None:
    (file,) = (explored / "agents" / "node-0").iterdir()
    lines = file.read_text().splitlines()
    torn = tmp_path / "torn.jsonl"
    torn.write_text("\n".join([*lines[:5], lines[5][:30]]))
    result = run(app, ["replay", str(torn)])
    assert result.exit_code == 0
    assert "its last line was not written to its end: the agent was killed" in result.stdout
    torn.write_text("\n".join([*lines[:5], lines[5][:30], *lines[6:]]))
    result = run(app, ["replay", str(torn)])
    assert result.exit_code != 0
    assert str(result.exception).startswith(f"{torn}:6: is damaged: no JSON: ")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.mkdir(), "holds no journal: give a journal-LIFE.jsonl"),
        (lambda path: path.touch(), "is empty: no life has taken anything in"),
        (lambda path: path.write_text("{}\n"), ":1: by: expected 'worker' or 'root', not None"),
        (lambda path: path.write_text('{"journal":9}\n'), ":1: journal: schema 9; this version"),
        (lambda path: path.write_bytes(b"\xff\n"), ":1: is damaged: no JSON"),
    ],
)
def test_what_is_no_journal_is_refused(make, words: str, tmp_path: Path) -> None:
    path = tmp_path / "it"
    make(path)
    result = run(app, ["replay", str(path)])
    assert result.exit_code != 0
    assert words in str(result.exception)


def test_a_state_is_one_journals(explored: Path) -> None:
    result = run(app, ["replay", str(explored), "--until", "3"])
    assert "--until and --show take one journal; there are " in str(result.exception)


def test_journals_go_into_a_new_folder(explored: Path) -> None:
    result = run(app, ["explore", "--seeds", "1", "--journal", str(explored)])
    assert "is there already: name a new folder" in str(result.exception)
