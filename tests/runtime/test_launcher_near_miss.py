"""A run that failed shows its error once, and which option was meant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from castor_records.events.event import Entry
from castor_records.events.failures import Detected
from castor_records.recoveries import recoveries
from castor_runtime.agent.log_tail import last_line
from castor_runtime.launcher.near_miss import near_misses
from castor_runtime.launcher.result_file import failure_tail, ranks_at_fault
from castor_runtime.launcher.run_folder import RunFolder

CASTORS = ("--nodes", "--standby", "--replicas", "--kill", "-h")
USAGE = "usage: train.py [-h] [--iterations ITERATIONS] [--hidden-size N] [--lr LR]\n"


@pytest.mark.parametrize(
    ("said", "hints"),
    [
        (
            USAGE + "train.py: error: unrecognized arguments: --node 2",
            ["the script has no option --node: did you mean --nodes of castor train?"],
        ),
        (
            USAGE + "train.py: error: unrecognized arguments: --iteration=30 --replica 2",
            [
                "the script has no option --iteration: did you mean --iterations of the script?",
                "the script has no option --replica: did you mean --replicas of castor train?",
            ],
        ),
        (
            "Error: No such option: --nods",
            ["the script has no option --nods: did you mean --nodes of castor train?"],
        ),
        (
            "FATAL Flags parsing error: Unknown command line flag 'standbys'. Did you mean: x ?",
            ["the script has no option --standbys: did you mean --standby of castor train?"],
        ),
        (USAGE + "train.py: error: unrecognized arguments: --tokenizer-path x", []),
        (USAGE + "train.py: error: argument --lr: invalid float value: 'fast'", []),
        ("ModuleNotFoundError: No module named 'datasets'", []),
    ],
)
def test_an_option_that_the_script_refuses_is_compared_with_those_there_are(
    said: str, hints: list[str]
) -> None:
    assert near_misses(said, CASTORS) == hints


TRACEBACK = 'Traceback (most recent call last):\n  File "t.py", line 3, in <module>\n'


def write(folder: RunFolder, name: str, text: str, age_s: float = 0.0) -> Path:
    log = folder.path / "agents" / name
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(text)
    os.utime(log, (1e9 - age_s, 1e9 - age_s))
    return log


def test_an_error_that_came_with_every_attempt_is_shown_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    again = "loading\n" + TRACEBACK + "ValueError: no such corpus\n"
    log = write(folder, "node-1/rank-1.log", again * 6)
    assert failure_tail(folder) == (log, (TRACEBACK + "ValueError: no such corpus"))


def test_what_led_to_an_error_is_shown_with_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    chained = (
        f"{TRACEBACK}KeyError: 'x'\n\nDuring handling of the above exception, another exception "
        f"occurred:\n\n{TRACEBACK}RuntimeError: bad file"
    )
    write(folder, "node-0/rank-0.log", f"{TRACEBACK}OSError: earlier\nagain\n{chained}\n")
    found = failure_tail(folder)
    assert found is not None
    assert found[1] == chained


def test_the_log_of_who_is_held_responsible_comes_before_a_later_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    cause = write(folder, "node-1/rank-1.log", TRACEBACK + "ValueError: its own\n", age_s=5)
    symptom = write(folder, "node-0/rank-0.log", TRACEBACK + "RuntimeError: peer closed\n")
    assert failure_tail(folder) == (symptom, TRACEBACK + "RuntimeError: peer closed")
    assert failure_tail(folder, (1,)) == (cause, TRACEBACK + "ValueError: its own")


def test_who_left_without_an_error_is_shown_and_no_bystander(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    silent = write(folder, "node-1/rank-1.log", "iteration 6\nthe licence has expired\n\n", age_s=5)
    symptom = write(folder, "node-0/rank-0.log", TRACEBACK + "RuntimeError: peer closed\n")
    assert failure_tail(folder, (1,)) == (silent, "iteration 6\nthe licence has expired")
    silent.write_text("")
    assert failure_tail(folder, (1,)) == (symptom, TRACEBACK + "RuntimeError: peer closed")


@pytest.mark.parametrize(
    ("said", "last"),
    [
        ("no such corpus\n\n", "no such corpus"),
        (f"{TRACEBACK}ValueError: x\n", "ValueError: x"),
        ("at iteration 6\n/l/a.py:83: FutureWarning: old\n  return func()\n", "at iteration 6"),
        ("/l/a.py:83: UserWarning: old\n  return func()\n\n", ""),
        ("/l/a.py:83: UserWarning: old\nindented is:\n  this\n", "this"),
        ("", ""),
    ],
)
def test_a_warning_is_nobodys_last_words(said: str, last: str) -> None:
    assert last_line(said) == last


def test_a_complaint_of_usage_is_shown_from_its_beginning(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    said = USAGE + "train.py: error: unrecognized arguments: --node 2\n"
    log = write(folder, "node-0/rank-0.log", said * 2)
    assert failure_tail(folder) == (log, said.rstrip())


def test_who_was_named_and_what_others_saw_stand_apart_in_the_result() -> None:
    named = {"machine": 1, "rank": 1, "agent": "node-1", "how": "exit", "cause": "rank 1 exited"}
    saw = "machine 0: rank 0 exited with code 1: closed by peer"
    told = {"generation": 2, "failure": "software", "seen": [saw], **named}
    detected = Entry(5, Detected.of_fields(told))
    (found,) = recoveries([detected])
    assert found.culprits == (named,)
    assert found.seen == (saw,)
    assert ranks_at_fault([found]) == (1,)
    unknown = {"machine": None, "rank": None, "agent": "", "how": "unknown", "cause": "not known"}
    (found,) = recoveries(
        [Entry(5, Detected.of_fields({"generation": 2, "seen": [saw], **unknown}))]
    )
    assert found.culprits == ()
    assert ranks_at_fault([found]) == ()
