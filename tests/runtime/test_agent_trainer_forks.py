"""The trainers' fork server and the agent's link to it: real processes, forked and killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from castor_runtime.processes import is_alive

pytestmark = pytest.mark.long  # a host imports torch and deepspeed first

PROGRAM = Path(__file__).with_name("agent_trainer_forks_program.py")


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return played("live", tmp_path_factory.mktemp("host"))


def played(how: str, folder: Path) -> dict[str, Any]:
    ended = subprocess.run(
        [sys.executable, str(PROGRAM), how, str(folder)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"},
    )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def test_a_trainer_runs_as_a_main_program(life: dict[str, Any]) -> None:
    speaks = life["speaks"]
    assert speaks["code"] == 0
    assert "rank 3 of 8 __main__ beside the script" in speaks["log"]
    assert speaks["atexit"] == "left well"


def test_how_a_trainer_ended_is_told(life: dict[str, Any]) -> None:
    assert life["leaves"]["code"] == 7
    assert life["says_why"]["code"] == 1
    assert life["says_why"]["last_words"] == "no such corpus"
    assert life["raises"]["code"] == 1
    assert life["raises"]["last_words"] == "ArithmeticError: the loss is NaN"
    assert 'raises.py", line 2' in life["raises"]["log"]


def test_the_host_has_one_thread(life: dict[str, Any]) -> None:
    assert life["threads"] == 1


def test_what_every_engine_imports_is_there_and_no_compiler(life: dict[str, Any]) -> None:
    assert life["lists"] == {"code": 0, "log": "True\nFalse\n", "last_words": "False"}


def test_a_script_may_compute_while_it_is_imported(life: dict[str, Any]) -> None:
    """Its threads do not reach the trainer's process, which would wait for them for ever."""
    assert life["computes"]["code"] == 0
    assert "threads 3" in life["computes"]["log"], "as many as it has asked for"


def test_a_script_that_uses_a_gpu_while_it_is_imported_is_told(life: dict[str, Any]) -> None:
    refused = life["uses_gpu"]
    assert refused["code"] == 1
    assert "uses_gpu.py imports using, which uses the GPU while it is imported" in refused["log"]
    assert "or import the module in main()" in refused["last_words"]
    assert life["uses_no_gpu"] == {"code": 0, "log": "it runs\n", "last_words": "it runs"}


def test_functions_are_called_in_a_process_of_their_own(life: dict[str, Any]) -> None:
    assert life["call"] == [0, True]
    # Nor has a process that writes to a bucket to import S3's libraries.
    assert life["at_hand"] == [0, "True"]
    code, said = life["bad_call"]
    assert code == 1
    assert "no_such" in said


def test_a_killed_trainer_takes_its_children_with_it(life: dict[str, Any]) -> None:
    assert life["killed"] == [-9, True]


def test_a_start_that_was_given_up_is_killed_too(life: dict[str, Any]) -> None:
    assert life["given_up"] == []


def test_trainers_die_with_their_host_and_the_agent_hears_of_it(life: dict[str, Any]) -> None:
    assert life["host_lost"] == [-9, True]


def test_a_stopped_host_holds_up_nothing_and_is_lost(tmp_path: Path) -> None:
    """Case c03: its agent neither waits for it for ever nor goes on without one."""
    assert played("stop", tmp_path) == {"killed": True, "lost_at_once": False, "host": True}


def test_host_and_trainers_die_with_the_agent(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), "wait", str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as agent:
        assert agent.stdout is not None
        processes = json.loads(agent.stdout.readline())
        assert all(is_alive(pid) for pid in processes)
        agent.kill()
    deadline = time.monotonic() + 30
    while any(is_alive(pid) for pid in processes):
        assert time.monotonic() < deadline, "outlived the agent"
        time.sleep(0.01)
    # Its child is in another's hands: the trainer's own end cannot take it along.
    child = int((tmp_path / "child").read_text())
    subprocess.run(["kill", "-9", str(child)], check=False)
