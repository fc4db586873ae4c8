"""Trainers that go on without a restart where another is lost, on real processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from castor_lab.soak.trial import Running, Trial, running, train
from castor_records.events.event import Entry, Event, of_kind
from castor_records.events.failures import (
    Detected,
    Replaced,
    Resumed,
    SpareReady,
    SpareStarted,
    SpareTaken,
    TrainerStarted,
    TrainerStayed,
)
from castor_records.events.training import IterationEnded, LinkMeasured, Scheduled

pytestmark = pytest.mark.long

# gpt2_tiny.py; but once all ranks train their first iteration in the first generation, one dies.
DIES_FIRST = """
import json, os, runpy, signal, sys, time
import castor

real = castor.Checkpointer
first = json.loads(os.environ["CASTOR_TRAINER"])["generation"] == 1

class DyingFirst(real):
    def iteration(self):
        begun = super().iteration()
        if first and self.done == 0 and os.environ["RANK"] == "1":
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
        return begun

castor.Checkpointer = DyingFirst
path = EXAMPLE
sys.argv[0] = path
sys.path.insert(0, str(path.rpartition("/")[0]))
runpy.run_path(path, run_name="__main__")
"""


class Lives:
    """Which process was each rank's, generation by generation.

    Attributes:
        stayed: generation -> rank -> process, of those that went on.
        anew: the same of those that were started.
    """

    def __init__(self, entries: Iterable[Entry[Event]]) -> None:
        entries = list(entries)
        self.stayed: dict[int, dict[int, int]] = {}
        self.anew: dict[int, dict[int, int]] = {}
        for kind, found in ((TrainerStayed, self.stayed), (TrainerStarted, self.anew)):
            for entry in of_kind(entries, kind):
                event = entry.event
                found.setdefault(event.generation, {})[event.rank] = event.pid

    def of(self, generation: int) -> dict[int, int]:
        """Return the process of each rank in a generation."""
        return self.stayed.get(generation, {}) | self.anew.get(generation, {})

    def check(self, generation: int, *, lost: set[int], before: int | None = None) -> None:
        """All ranks but the lost are the processes that they were before; those are new ones."""
        were = self.of(generation - 1 if before is None else before)
        others = {rank: pid for rank, pid in were.items() if rank not in lost}
        assert self.stayed.get(generation, {}) == others
        anew = self.anew.get(generation, {})
        assert anew.keys() == lost
        assert not set(anew.values()) & set(were.values())


def check_end(trial: Trial, sha256: str) -> None:
    sys.stdout.write(trial.output)
    assert trial.code == 0, trial.output
    assert trial.result["faults_not_injected"] == []
    assert trial.sha256 == sha256
    assert trial.processes_left == trial.memory_left == ()


def test_a_rank_the_first_rank_and_a_machine_are_lost(
    tmp_path: Path, program: tuple[str, ...], baseline: Any
) -> None:
    # Rank 0 holds the place at which all meet.
    faults = ("--kill", "rank:2@8", "--kill", "rank:0@15", "--kill", "machine:3@22")
    scheme = ("--scheme", "pipelined", "--profile-iterations", "3")
    options = ("--nodes", "4", "--lease", "5s", "--standby", "1", *scheme, *faults)
    trial = train(tmp_path / "run", [*options, *program, "--iterations=30", "--in-place"])
    check_end(trial, baseline(4, 30))
    lives = Lives(trial.events)
    assert lives.anew[1].keys() == {0, 1, 2, 3}
    for generation, lost in ((2, 2), (3, 0), (4, 3)):
        lives.check(generation, lost={lost})
    (replaced,) = trial.of(Replaced)
    assert (replaced.event.machine, replaced.event.agent) == (3, "spare-0")
    assert [one["iterations_lost"] <= 1 for one in trial.recoveries] == [True] * 3
    # What was learned of the network goes with them, and is told to who is new.
    assert {entry.event.generation for entry in trial.of(LinkMeasured)} == {1}
    kept = [entry.event for entry in trial.of(Scheduled) if entry.event.reason == "kept"]
    assert {(one.generation, one.rank) for one in kept} == {
        (generation, rank) for generation in (2, 3, 4) for rank in range(4)
    }


@pytest.fixture
def start_dying_first(
    tmp_path: Path, program: tuple[str, ...], request: pytest.FixtureRequest
) -> Callable[..., Running]:
    def begin(*options: str, iterations: int) -> Running:
        script = tmp_path / "dies_first.py"
        script.write_text(DIES_FIRST.replace("EXAMPLE", repr(program[0])))
        line = [*options, str(script), *program[1:], "--iterations", str(iterations), "--in-place"]
        block = running(tmp_path / "run", line)
        run = block.__enter__()
        request.addfinalizer(lambda: block.__exit__(None, None, None))
        return run

    return begin


def test_ranks_are_lost_before_there_is_a_checkpoint_and_in_a_recovery_and_one_is_stopped(
    start_dying_first: Callable[..., Running], baseline: Any
) -> None:
    run = start_dying_first("--nodes", "4", "--lease", "5s", iterations=60)

    def trained(iteration: int = 1) -> int:
        """Return the newest generation in which that iteration, or a later one, has ended."""
        ended = [entry.event for entry in of_kind(run.events(), IterationEnded)]
        return max((one.generation for one in ended if one.iteration >= iteration), default=0)

    def detected() -> int:
        """Return the newest generation that a failure has led to."""
        return max((e.event.generation or 0 for e in of_kind(run.events(), Detected)), default=0)

    def pids() -> dict[int, int]:
        return Lives(run.events()).of(trained())

    run.wait_until(lambda: trained(5) == 2, "trained after the first rank has died")
    old = pids()
    os.kill(old[2], signal.SIGKILL)
    run.wait_until(lambda: detected() == 3, "detected")
    os.kill(old[3], signal.SIGKILL)
    run.wait_until(
        lambda: not {old[2], old[3]} & set(pids().values()), "trained with others in both places"
    )
    last, old = trained(), pids()
    # Who is stopped cannot leave its generation, and is not waited for.
    os.kill(old[3], signal.SIGSTOP)
    os.kill(old[0], signal.SIGKILL)
    trial = run.wait()
    check_end(trial, baseline(4, 60))

    lives = Lives(trial.events)
    # No memory holds what they begin from: who was kept is started, too.
    lives.check(2, lost={0, 1, 2, 3})
    assert {e.event.iteration for e in trial.of(Resumed) if e.event.generation == 2} == {0}
    # Of a generation that came to nothing not every rank need have begun.
    between = [generation for generation in range(3, last + 1) if lives.of(generation)]
    for rank in (0, 1):
        assert {lives.of(g).get(rank, lives.of(2)[rank]) for g in between} == {lives.of(2)[rank]}
    assert {rank for generation in between for rank in lives.anew.get(generation, {})} == {2, 3}
    lives.check(last + 1, lost={0, 3})


def test_warm_spares_take_the_places_of_those_that_are_killed(
    tmp_path: Path, program: tuple[str, ...], baseline: Any
) -> None:
    options = ("--nodes", "2", "--warm-spares", *program, "--iterations=60", "--in-place")
    with running(tmp_path / "run", options) as run:

        def spares(rank: int) -> list[int]:
            """Return the processes of the rank's spares that have stood, in order."""
            ready = [e for e in of_kind(run.events(), SpareReady) if e.event.rank == rank]
            begun = [e.event for e in of_kind(run.events(), SpareStarted) if e.event.rank == rank]
            return [one.pid for one in begun[: len(ready)]]

        places = {}
        for generation, rank in ((2, 1), (3, 0)):
            run.wait_until(lambda: all(spares(r) for r in (0, 1)), "spares stand")
            places[generation] = spares(rank)[-1]
            os.kill(Lives(run.events()).of(generation - 1)[rank], signal.SIGKILL)
            run.wait_until(
                lambda g=generation: any(
                    entry.event.generation == g for entry in of_kind(run.events(), IterationEnded)
                ),
                "trained with the spare",
            )
        trial = run.wait()
    check_end(trial, baseline(2, 60))
    taken = [entry.event for entry in trial.of(SpareTaken)]
    assert [(one.generation, one.rank, one.pid) for one in taken] == [
        (2, 1, places[2]),
        (3, 0, places[3]),
    ]
    lives = Lives(trial.events)
    assert lives.anew.keys() == {1}, "nobody is started where a spare stands"
    assert lives.stayed == {2: {0: lives.anew[1][0]}, 3: {1: places[2]}}
    # Another one stands beside the one that took a place.
    assert len([e for e in trial.of(SpareStarted) if e.event.rank == 1]) >= 2
