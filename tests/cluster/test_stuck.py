"""Runs that get stuck, or seem to: evaluations, deadlocks, hung storage, stopped processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from castor_lab.soak.trial import Running, train
from castor_records.events.event import Event, of_kind
from castor_records.events.failures import Detected, TrainerStarted
from castor_records.events.storing import Persisted
from castor_records.events.training import Busy
from castor_runtime.persistent.manifest import MANIFEST_NAME

pytestmark = pytest.mark.long

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "gpt2_tiny.py"
SMALL = ("--layers=1", "--hidden=32", "--sequence=32", "--batch=2")

# The example, but it evaluates twice, far longer than --stall, and once a rank does not come.
STUCK = """
import json, os, runpy, time
import castor, torch
import torch.distributed as dist

FIRST_LIFE = json.loads(os.environ["CASTOR_TRAINER"])["generation"] == 1

class Evaluates(castor.Checkpointer):
    def resume(self):
        self.iteration = super().resume()
        return self.iteration

    def step(self, loss=None):
        super().step(loss=loss)
        self.iteration += 1
        if self.iteration == 5:
            if dist.get_rank() == 0:
                with self.busy("evaluation"):
                    time.sleep(8)
            dist.barrier()
        if self.iteration == 7:
            for _ in range(16):
                time.sleep(0.5)
                dist.all_reduce(torch.ones(1))
        if self.iteration == 9 and FIRST_LIFE and dist.get_rank() == 1:
            time.sleep(600)

castor.Checkpointer = Evaluates
runpy.run_path({example!r}, run_name="__main__")
"""


def test_an_evaluation_is_no_stall_and_of_a_deadlock_the_missing_rank_is_named(
    tmp_path: Path, baseline: Callable[[int, int], str]
) -> None:
    """Case 13-long-eval: killed as hung again and again, and the evaluation never ended."""
    script = tmp_path / "evaluates.py"
    script.write_text(STUCK.format(example=str(EXAMPLE)))
    options = ("--nodes", "2", "--stall", "3s", str(script), "--iterations", "30", *SMALL)
    trial = train(tmp_path / "run", options)
    assert trial.code == 0, trial.output
    [recovery] = trial.recoveries
    assert recovery["machines"] == [1]
    assert "rank 1" in recovery["cause"]
    assert recovery["since"] == "last_iteration"
    assert recovery["seconds"]["detection"] > 2.5
    assert [entry.event.what for entry in trial.of(Busy)] == ["evaluation"]
    assert trial.sha256 == baseline(2, 30)


def trainer(run: Running, generation: int, rank: int) -> int | None:
    """Return the process of a rank, once it has been forked."""
    for entry in of_kind(run.events(), TrainerStarted):
        if (entry.event.generation, entry.event.rank) == (generation, rank):
            return entry.event.pid
    return None


def agent(run: Running, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.folder / "agents" / name / "agent.json").read_text())
    return found


def test_hung_storage_and_a_trainer_stopped_as_it_starts_hold_nobody_up(
    start: Callable[..., Running], tmp_path: Path, baseline: Callable[[int, int], str]
) -> None:
    """Cases c08 and u9: all is in memory, storage answers nothing, a new trainer is stopped."""
    store = tmp_path / "store"
    run = start("--nodes", "2", "--persist", str(store), "--persist-every", "1h")
    run.wait_until(lambda: run.iteration() >= 5, "training")
    hung = store / "global_step99999"
    hung.mkdir(parents=True)
    os.mkfifo(hung / MANIFEST_NAME)  # whoever opens it waits: a server that does not answer
    run.inject("rank:1@now")
    run.wait_until(lambda: trainer(run, 2, 0) is not None, "started again")
    stopped = trainer(run, 2, 0)
    assert stopped is not None
    os.kill(stopped, signal.SIGSTOP)
    trial = run.wait(240)
    assert trial.code == 0, trial.output
    hangs = [e for e in trial.of(Detected) if e.event.how == "hang"]
    assert [entry.event.rank for entry in hangs] == [0]
    assert trial.sha256 == baseline(2, 30)


@pytest.fixture
def small(tmp_path: Path, needs: Callable[..., None]) -> Iterator[Path]:
    """A file system of its own, so small that it can be filled."""
    needs("mount", "umount", root=True)
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "castor-test", str(folder)]
    subprocess.run(mount, check=True, timeout=30)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=30)


def fill(folder: Path) -> Path:
    """Take all the room there is."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    return filler


def test_a_full_tier_is_told_of_and_works_again_and_a_stopped_host_is_replaced(
    start: Callable[..., Running], small: Path
) -> None:
    """Case c03, and a tier that is full while training goes on."""
    filler = fill(small)
    run = start("--nodes", "2", "--persist", str(small), "--persist-every", "1s", iterations=100000)

    def seen(kind: type[Event]) -> bool:
        return any(of_kind(run.events(), kind))

    full = "No space left on device"
    run.wait_until(lambda: full in run.output(), "told that the tier is full")
    filler.unlink()
    run.wait_until(lambda: seen(Persisted), "persisting again")
    before = agent(run, "node-1")
    os.kill(before["fork_server_pid"], signal.SIGSTOP)
    reached = run.iteration()
    before_pid = before["fork_server_pid"]
    run.wait_until(lambda: agent(run, "node-1")["fork_server_pid"] != before_pid, "replaced")
    run.wait_until(lambda: run.iteration() > reached + 5, "training again")
    run.process.send_signal(signal.SIGTERM)
    trial = run.wait(60)
    assert any(full in one["cause"] for one in trial.result["persistent"]["failures"])
    assert trial.result["persistent"]["newest"] is not None
    assert trial.processes_left == ()
