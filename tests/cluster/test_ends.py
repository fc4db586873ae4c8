"""How runs end that cannot finish, and what they leave: nothing but what they say."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from castor_lab.soak.trial import plain, train
from castor_records.events.failures import Detected, TrainerStarted
from castor_records.events.storing import Persisted
from castor_records.events.training import IterationEnded
from castor_runtime.launcher.run_folder import RunFolder

pytestmark = pytest.mark.long

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "gpt2_tiny.py"

# The example, but for one iteration that always fails.
BREAKS = """
import runpy
import castor

class Breaks(castor.Checkpointer):
    def resume(self):
        self.iteration = super().resume()
        return self.iteration

    def step(self, loss=None):
        super().step(loss=loss)
        self.iteration += 1
        if self.iteration == 5:
            raise ArithmeticError("the loss is NaN at iteration 5")

castor.Checkpointer = Breaks
runpy.run_path({example!r}, run_name="__main__")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_leaves_nothing(start: Any, number: signal.Signals) -> None:
    run = start(iterations=10000)
    run.wait_until(lambda: run.iteration() >= 5, "training")
    assert run.memory() != []
    run.process.send_signal(number)
    trial = run.wait(30)
    assert trial.code == 128 + number, trial.output
    assert trial.result["outcome"] == "interrupted"
    assert trial.processes_left == trial.memory_left == ()


def test_whoever_watches_a_run_sees_its_result(start: Any, tmp_path: Path) -> None:
    run = start("--nodes", "2", waits_at=5)
    run.wait_until(lambda: run.iteration() >= 1, "training")
    code = "from castor.app import main; main()"
    # From the store alone, as on another machine: a socket that is this user's only.
    url = json.loads((run.folder / "run.json").read_text())["store"]
    assert url.startswith("etcd+unix://")
    asking = [sys.executable, "-c", code, "status", "--json", "--store", url, "--job", run.job]

    def told() -> dict[str, Any]:
        done = subprocess.run(asking, capture_output=True, text=True, timeout=60, check=True)
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    run.wait_until(lambda: told()["complete_iteration"] > 0, "complete in memory")
    assert all(one["memory_bytes"] for one in told()["machines"])
    watching = [sys.executable, "-c", code, "status", "--watch", "--json", "--run", str(run.folder)]
    with subprocess.Popen(watching, stdout=subprocess.PIPE, text=True) as watched:
        assert watched.stdout is not None
        assert "outcome" not in json.loads(watched.stdout.readline())
        (tmp_path / "go").touch()
        last = json.loads(watched.stdout.read().splitlines()[-1])
    trial = run.wait(60)
    assert watched.returncode == 0
    assert last == trial.result
    assert (last["outcome"], last["iterations"]) == ("finished", 30)


def test_what_a_killed_run_leaves_is_cleaned_by_the_next(start: Any) -> None:
    killed = start(iterations=10000, name="killed")
    killed.wait_until(lambda: killed.iteration() >= 5, "training")
    killed.kill_all()
    following = start(iterations=10000, name="following")
    following.wait_until(lambda: "machines, " in following.output(), "started")
    assert killed.memory() == []
    assert killed.processes() == {}
    following.process.terminate()
    assert following.wait(60).memory_left == ()


def test_a_launcher_killed_alone_takes_all_with_it(start: Any) -> None:
    run = start(iterations=10000)
    run.wait_until(lambda: run.iteration() >= 5, "training")
    agents = RunFolder(run.folder).records()
    trainers = [pid for one in agents for pid in one.trainers.values()]
    forked = [one.fork_server_pid for one in agents]
    assert len(trainers) == 4
    assert {run.process.pid, *(one.pid for one in agents), *forked, *trainers} <= {*run.processes()}
    run.process.kill()
    trial = run.wait()
    assert trial.code == -signal.SIGKILL
    assert trial.processes_left == ()


def test_a_script_that_always_raises_ends_with_its_last_words(tmp_path: Path) -> None:
    script = tmp_path / "breaks.py"
    script.write_text(BREAKS.format(example=str(EXAMPLE)))
    options = ["--max-attempts", "2", str(script), "--layers=1", "--hidden=32", "--sequence=32"]
    trial = train(tmp_path / "run", options)
    sys.stdout.write(trial.output)
    assert trial.code == 1
    assert trial.result["outcome"] == "failed"
    assert "the loss is NaN at iteration 5" in trial.result["reason"]
    assert "ArithmeticError: the loss is NaN at iteration 5" in plain(trial.output)
    assert "in step" in trial.output  # the end of its traceback
    generations = {entry.event.generation for entry in trial.of(TrainerStarted)}
    assert len(generations) <= 4
    assert trial.processes_left == ()
    # What was complete is kept, and it is said how to go on.
    assert trial.result["kept_memory"]["iteration"] == 4
    assert "castor resume" in plain(trial.output)
    assert any(name.endswith(".kept") for name in trial.memory_left)


def test_a_memory_budget_that_is_too_small(castor_train: Any) -> None:
    trial = castor_train("--memory-limit", "64KiB")
    assert trial.code == 1
    assert trial.result["outcome"] == "failed"
    said = plain(trial.output)
    # What needs how much, and what there is.
    assert re.search(r"part of rank \d, 2 buffers \d{3}\.\d+ KiB", said), said
    assert re.search(r"needed \d{3}\.\d+ KiB", said)
    assert re.search(r"left of the limit, too little 64\.000 KiB", said)
    assert trial.of(IterationEnded) == []
    assert {e.event.generation for e in trial.of(TrainerStarted)} == {1}


def test_another_jobs_checkpoints_are_refused_by_name(start: Any, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    options = ("--persist", str(kept), "--persist-every", "1s")
    first = start(*options, iterations=10000, name="first")
    first.wait_until(
        lambda: any(isinstance(entry.event, Persisted) for entry in first.events()), "persisted"
    )
    first.process.terminate()
    assert first.wait(60).result["outcome"] == "interrupted"
    other = start(*options, name="other").wait()
    sys.stdout.write(other.output)
    assert other.code == 1
    assert other.result["outcome"] == "failed"
    said = plain(other.output)
    assert first.job in said
    assert str(kept) in said
    assert other.of(IterationEnded) == []
    assert other.processes_left == other.memory_left == ()


def _burn() -> None:
    while True:
        pass


@contextmanager
def all_cores_busy() -> Iterator[None]:
    burners = [
        multiprocessing.get_context("spawn").Process(target=_burn, daemon=True)
        for _ in range(os.cpu_count() or 2)
    ]
    for burner in burners:
        burner.start()
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.join()
            burner.close()


def test_no_false_alarm_on_a_loaded_machine(castor_train: Any) -> None:
    with all_cores_busy():
        trial = castor_train("--lease", "5s", iterations=200)
    assert trial.code == 0, trial.output
    assert trial.result["iterations"] == 200
    assert trial.of(Detected) == []
    assert trial.recoveries == []
