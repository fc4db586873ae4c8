"""One run that trainers are killed in, and what it came to."""

from __future__ import annotations

import contextlib
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Final

import psutil
from outages import find_outage, highfreq_interval
from rank_log import Record, life_of, of_kind
from scale import (
    BYTES_PER_PARAMETER,
    PAPER_CHECKPOINT_S,
    PAPER_ITERATION_S,
    parameters,
)
from systems import START_LIMIT_S, CastorRun, SystemRun, castor, storage_options, torchrun

RANKS: Final = 4
HIDDEN: Final = 120
IN_PLACE, RESTART, STORAGE = WAYS = ("in place", "restart", "storage")


@dataclass(frozen=True, slots=True)
class Job:
    """One run that failures happen to.

    Attributes:
        way: how it recovers.
        between: iterations to each failure.
        failures: how many.
        iteration_s: that an iteration is stretched to.
        seed: of the instants and ranks.
    """

    way: str
    between: int
    failures: int
    iteration_s: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.way.replace(' ', '-')}-{self.between}"

    @property
    def wall_s(self) -> float:
        """How long it is looked at, from the end of the first iteration."""
        return self.failures * self.between * self.iteration_s

    @property
    def storage_bytes_per_s(self) -> float:
        """A rank's share of the storage: a checkpoint is to an iteration as in the paper."""
        state_bytes = parameters(HIDDEN) * BYTES_PER_PARAMETER / RANKS
        return state_bytes / (self.iteration_s * PAPER_CHECKPOINT_S / PAPER_ITERATION_S)

    @property
    def every(self) -> int:
        """HighFreq's interval in iterations."""
        return highfreq_interval(
            self.iteration_s * PAPER_CHECKPOINT_S / PAPER_ITERATION_S, self.iteration_s
        )

    def instants_s(self) -> list[float]:
        """Return when trainers are killed: once in each `between` iterations, anywhere in them.

        An iteration lies between two of them at least: a failure in the recovery from another is
        for others to show.
        """
        rng = random.Random(self.seed * 1000 + self.between)
        instants: list[float] = []
        for number in range(self.failures):
            at_s = (number + rng.random()) * self.between * self.iteration_s
            last_s = instants[-1] if instants else 0.0
            instants.append(max(at_s, last_s + self.iteration_s))
        return instants


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run came to.

    Attributes:
        job: which.
        failures_s: when trainers were killed, from the end of the first iteration.
        iteration_s: median of the iterations that no failure touched, rank 0's.
        useful_iterations: kept at the end, with the part of the one under way.
        outages_s: of each failure, from the kill to the end of an iteration that is new.
        lost: of each, whole iterations that were done again.
    """

    job: Job
    failures_s: tuple[float, ...]
    iteration_s: float
    useful_iterations: float
    outages_s: tuple[float, ...]
    lost: tuple[int, ...]

    @property
    def ettr(self) -> float:
        """Effective training time ratio."""
        return self.useful_iterations * self.iteration_s / self.job.wall_s


def start(job: Job, out: Path, pace_s: float) -> SystemRun:
    """Start the run."""
    arguments = ["--hidden", str(HIDDEN), "--pace-s", f"{pace_s:.4f}"]
    if job.way == STORAGE:
        storage = storage_options(job.every, job.storage_bytes_per_s)
        return torchrun(out, RANKS, "deepspeed", [*arguments, *storage])
    if job.way == IN_PLACE:
        return castor(out, RANKS, [*arguments, "--in-place"], "--warm-spares")
    return castor(out, RANKS, arguments)


def strike(run: SystemRun, rank: int) -> int:
    """Kill a rank, or whoever of the job lives while it is being restarted; return when."""
    if isinstance(run, CastorRun):
        return run.kill_rank(rank)
    while True:
        with contextlib.suppress(ProcessLookupError):
            return run.kill_rank(rank)
        for process in psutil.Process(run.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                process.kill()
                return time.time_ns()
        time.sleep(0.01)


def measure(job: Job, out: Path, pace_s: float) -> Measured:
    """Run a job to its end; the calling process has this run alone."""
    rng = random.Random(job.seed)
    struck_ns: list[int] = []
    with start(job, out, pace_s) as run:
        run.wait(lambda: run.ended(1), "the first iteration", START_LIMIT_S)
        begun_ns = next(r["time_ns"] for r in of_kind(run.logs()[0], "iteration_ended"))
        for instant_s in job.instants_s():
            time.sleep(max(0.0, begun_ns / 1e9 + instant_s - time.time()))
            struck_ns.append(strike(run, rng.randrange(RANKS)))
            print(f"{job.name}: {instant_s:.1f} s", file=sys.stderr, flush=True)
        end_ns = begun_ns + round(job.wall_s * 1e9)
        time.sleep(max(0.0, (end_ns - time.time_ns()) / 1e9))
        run.wait(
            lambda: of_kind(run.logs()[0], "iteration_ended")[-1]["time_ns"] > end_ns,
            "an iteration after the end",
            20 * job.iteration_s + START_LIMIT_S,
            1.0,
        )
        logs = run.logs()
    outages = [found for at in struck_ns if (found := find_outage(logs, at)) is not None]
    return Measured(
        job,
        tuple((at - begun_ns) / 1e9 for at in struck_ns),
        untouched_s(logs[0]),
        useful(logs[0], end_ns),
        tuple(outage.new_s for outage in outages),
        tuple(outage.lost for outage in outages),
    )


def untouched_s(records: Sequence[Record]) -> float:
    """Return the median of the iterations that do not begin one of the rank's lives."""
    ended = of_kind(list(records), "iteration_ended")
    return median(
        late["seconds"] for early, late in pairwise(ended) if life_of(early) == life_of(late)
    )


def useful(records: Sequence[Record], end_ns: int) -> float:
    """Return the iterations after the first that were kept then, and the part of one under way.

    The next one that ends stands on all that were kept: what a failure threw away is done again.
    """
    ended = of_kind(list(records), "iteration_ended")
    following = next(record for record in ended if record["time_ns"] > end_ns)
    began_s = following["time_ns"] / 1e9 - following["seconds"]
    part = max(0.0, end_ns / 1e9 - began_s) / following["seconds"]
    # A restart from the start has thrown the first one away, too.
    return max(0.0, following["iteration"] - 1 - ended[0]["iteration"] + part)
