"""castor explore from the outside: exit codes, a shrunk schedule, its replay."""

from __future__ import annotations

import json
import shlex

import pytest
from typer.testing import CliRunner

from castor.app import app

run = CliRunner().invoke

BROKEN = ["explore", "--seeds", "30", "--jobs", "1", "--broken", "offer-before-complete"]


def test_schedules_without_a_violation_exit_with_0() -> None:
    result = run(app, ["explore", "--seeds", "3", "--jobs", "1", "--faults", "crash,store"])
    assert (result.exit_code, result.stdout) == (0, "3 schedules, 0 violations\n")


def test_a_violation_is_printed_with_a_command_that_shows_it_again() -> None:
    result = run(app, BROKEN)
    assert result.exit_code == 1
    first = result.stdout.split("\n\n")[0].splitlines()
    assert "invariant 1 (only complete shards" in first[0]
    assert first[-1].startswith("replay: castor explore --first-seed ")
    words = shlex.split(first[-1].removeprefix("replay: castor "))
    again = run(app, words)
    assert again.exit_code == 1
    assert again.stdout.splitlines()[0] == first[0]


@pytest.mark.long
def test_json_says_the_same_whatever_the_number_of_jobs(tmp_path) -> None:
    one, two = (run(app, [*BROKEN[:3], "--jobs", jobs, *BROKEN[5:], "--json"]) for jobs in "12")
    assert one.exit_code == two.exit_code == 1
    assert one.stdout == two.stdout
    violation = json.loads(one.stdout)["shown"][0]
    schedule = tmp_path / "faults.json"
    schedule.write_text(json.dumps(violation["faults"]), encoding="utf-8")
    seed = ["--first-seed", str(violation["seed"]), *BROKEN[5:]]
    again = run(app, ["explore", *seed, "--replay", str(schedule), "--json"])
    assert again.exit_code == 1
    assert json.loads(again.stdout)["shown"][0]["text"] == violation["text"]


def test_a_replay_without_a_violation_tells_what_happened() -> None:
    result = run(app, ["explore", "--replay", '[{"kind":"crash","time_s":3.0}]'])
    assert result.exit_code == 0
    assert "FAULT crash" in result.stdout
    assert result.stdout.endswith("no violation\n")


def test_bad_input_is_refused() -> None:
    for words in (
        ["--faults", "crash,rain"],
        ["--broken", "everything"],
        ["--machines", "2", "--replicas", "3"],
        ["--replay", "[1]"],
    ):
        result = run(app, ["explore", *words])
        assert result.exit_code != 0
        assert type(result.exception).__name__ == "InputError"
