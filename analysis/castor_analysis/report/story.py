"""What became of a real run, read from its event log: the facts that the report is written from.

The time since training began is divided without a rest that nobody explains:

    new iterations    time of the iterations that count, without the waits for checkpoints
    checkpoint stall  in them, training waited for its checkpoints: the slowest rank's wait
    hardware, software failures    from the failure until every rank has loaded, by kind
    cut off           of the iteration in flight when something failed
    redone            iterations that had ended before the failure and were run again
    other             what is left: the end of the run, gaps between two events, missing logs

Effective training time ratio = new iterations / all of it. All ranks train in step; in each
generation one speaks for them: that of which most iterations are told, as a rule rank 0. So a
machine whose log went with it leaves no gap.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from castor_records.events.event import Entry, Event, of_kind
from castor_records.events.failures import Redundant, RunStarted
from castor_records.events.storing import Persisted, PersistFailed
from castor_records.events.training import (
    CheckpointCompleted,
    CheckpointLeftOut,
    IterationEnded,
    LinkMeasured,
    Warned,
)
from castor_records.outages import Outage, course_of
from castor_records.recoveries import STOOD, Recovery, recoveries

_NS_PER_S = 1_000_000_000
KINDS = ("hardware", "software")


@dataclass(frozen=True, slots=True)
class Iteration:
    """One, as the rank tells it that speaks for all.

    Attributes:
        end_ns: when it ended.
        number: which one.
        seconds: how long it took.
        stall_s: of them, training waited for a checkpoint.
        redone: it had ended before.
        first: the first of its generation.
    """

    end_ns: int
    number: int
    seconds: float
    stall_s: float
    redone: bool
    first: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeAccount:
    """Where the time since training began went, in seconds; see the module's head."""

    wall_s: float
    new_s: float
    stall_s: float
    hardware_s: float
    software_s: float
    cut_off_s: float
    redone_s: float

    @property
    def other_s(self) -> float:
        """What is left."""
        told_s = self.new_s + self.stall_s + self.hardware_s + self.software_s
        return max(0.0, self.wall_s - told_s - self.cut_off_s - self.redone_s)

    @property
    def ratio(self) -> float | None:
        """The effective training time ratio; None before training began."""
        return min(1.0, self.new_s / self.wall_s) if self.wall_s > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """What checkpointing did.

    Attributes:
        complete: how many were complete in memory on every rank.
        left_out: how many were not: state changed while it was copied.
        seconds: of each, from its hand-over to completion; rank 0's.
        sent_bytes: to other machines' memory, all ranks together.
        part_bytes: one rank's part, by rank, as far as what was sent tells it.
        bandwidth_bps: measured to the machines that hold copies; None: not measured.
        persisted: persistent checkpoints of which every machine wrote its share.
        persist_s: of each, what its slowest share took.
        persist_failed: shares that were not written.
    """

    complete: int
    left_out: int
    seconds: tuple[float, ...]
    sent_bytes: int
    part_bytes: Mapping[int, int]
    bandwidth_bps: float | None
    persisted: int
    persist_s: tuple[float, ...]
    persist_failed: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """A run.

    Attributes:
        machines: that train.
        ranks: on all of them.
        replicas: copies of each part in memory, its own machine's among them; 0: not known.
        paced: waits stand for a GPU's work.
        begun_ns: when training began; None: it never did.
        end_ns: when what is told of ends: the last iteration, or the log if training stands.
        reached: the newest iteration that ended; 0: none.
        iterations: by time.
        recoveries: in order.
        outages: the same, as training and what lies between; empty if training never began.
        account: where the time went.
        checkpoints: what they did.
        warnings: each once.
    """

    machines: int
    ranks: int
    replicas: int
    paced: bool
    begun_ns: int | None
    end_ns: int
    reached: int
    iterations: tuple[Iteration, ...]
    recoveries: tuple[Recovery, ...]
    outages: tuple[Outage, ...]
    account: TimeAccount
    checkpoints: Checkpoints
    warnings: tuple[str, ...]

    @property
    def iteration_s(self) -> float | None:
        """An iteration without a failure: the median of those that begin no generation."""
        found = [one.seconds for one in self.iterations if not one.first]
        return statistics.median(found) if found else None

    @property
    def stall_s(self) -> float:
        """Median wait for a checkpoint in an iteration."""
        return statistics.median([one.stall_s for one in self.iterations] or [0.0])

    @property
    def checkpoint_bytes(self) -> int | None:
        """The state of all ranks together; None where no rank sent its part anywhere."""
        parts = self.checkpoints.part_bytes
        return sum(parts.values()) if len(parts) == self.ranks and self.ranks else None


def read_story(entries: Iterable[Entry[Event]]) -> Story:
    """Read a run.

    Args:
        entries: its log, of all agents. Where it has no `run_started`, machines and ranks are those
            that tell something, and how many copies there are is not known (0).

    Raises:
        ValueError: it is a simulated run's log.
    """
    log = sorted(entries, key=lambda entry: entry.time_ns)
    started = next((entry.event for entry in of_kind(log, RunStarted)), None)
    if started is not None and not started.is_measured:
        raise ValueError("is a simulated run's log: this reports on real ones")
    if started is None:
        started = RunStarted(
            machines=len({entry.event.machine for entry in of_kind(log, Redundant)}),
            ranks=len({entry.event.rank for entry in of_kind(log, IterationEnded)}),
        )
        log = [Entry(log[0].time_ns if log else 0, started), *log]
    machines, replicas = started.machines or 0, started.replicas or 0
    found = tuple(recoveries(log))
    course = course_of(log)
    iterations = _iterations(log)
    open_outage = bool(course.outages) and course.outages[-1].iteration is None
    end_ns = iterations[-1].end_ns if iterations else course.end_ns
    if open_outage:
        end_ns = max(end_ns, course.end_ns)
    return Story(
        machines=machines,
        ranks=started.ranks or 0,
        replicas=replicas,
        paced=started.compute == "paced",
        begun_ns=course.begun_ns,
        end_ns=end_ns,
        reached=max((one.number for one in iterations), default=0),
        iterations=iterations,
        recoveries=found,
        outages=course.outages,
        account=_account(course.begun_ns, end_ns, iterations, found, course.outages),
        checkpoints=_checkpoints(log, machines, replicas),
        warnings=tuple(dict.fromkeys(entry.event.message for entry in of_kind(log, Warned))),
    )


def _iterations(log: Sequence[Entry[Event]]) -> tuple[Iteration, ...]:
    stalls: dict[tuple[int, int], float] = defaultdict(float)
    for entry in of_kind(log, CheckpointCompleted):
        key = (entry.event.generation, entry.event.iteration)
        stalls[key] = max(stalls[key], entry.event.blocked_s or 0.0)
    told = Counter((e.event.generation, e.event.rank) for e in of_kind(log, IterationEnded))
    speaks: dict[int, int] = {}
    for (of, rank), _ in sorted(told.items(), key=lambda one: (-one[1], one[0])):
        speaks.setdefault(of, rank)
    found: list[Iteration] = []
    reached, generation = 0, -1
    for ended in of_kind(log, IterationEnded):
        event = ended.event
        if event.rank != speaks[event.generation]:
            continue
        # What a checkpoint costs, it costs in the iteration after it.
        stall_s = stalls[event.generation, event.iteration - 1]
        seconds = event.seconds or 0.0
        found.append(
            Iteration(
                ended.time_ns,
                event.iteration,
                seconds,
                min(stall_s, seconds),
                redone=event.iteration <= reached,
                first=event.generation != generation,
            )
        )
        reached, generation = max(reached, event.iteration), event.generation
    return tuple(found)


def _account(
    begun_ns: int | None,
    end_ns: int,
    iterations: Sequence[Iteration],
    found: Sequence[Recovery],
    outages: Sequence[Outage],
) -> TimeAccount:
    by_kind = dict.fromkeys(KINDS, 0.0)
    for recovery, outage in zip(found, outages, strict=bool(outages)):
        kind = recovery.kind if recovery.kind in by_kind else "software"
        by_kind[kind] += (outage.end_ns - outage.start_ns) / _NS_PER_S
    kept = [one for one in iterations if not one.redone]
    stall_s = sum(one.stall_s for one in kept)
    return TimeAccount(
        wall_s=0.0 if begun_ns is None else max(0, end_ns - begun_ns) / _NS_PER_S,
        new_s=sum(one.seconds for one in kept) - stall_s,
        stall_s=stall_s,
        hardware_s=by_kind["hardware"],
        software_s=by_kind["software"],
        cut_off_s=sum(_in_flight_s(one.start_ns, begun_ns or 0, iterations) for one in outages),
        redone_s=sum(one.seconds for one in iterations if one.redone),
    )


def _in_flight_s(failed_ns: int, begun_ns: int, iterations: Sequence[Iteration]) -> float:
    """Return how far the iteration had come that a failure cut off."""
    before = [one.end_ns for one in iterations if one.end_ns <= failed_ns]
    came_s = max(0, failed_ns - max(before, default=begun_ns)) / _NS_PER_S
    usual_s = statistics.median([one.seconds for one in iterations] or [0.0])
    # What is longer is no iteration: a log is missing.
    return came_s if came_s <= STOOD * usual_s else 0.0


def _checkpoints(log: Sequence[Entry[Event]], machines: int, replicas: int) -> Checkpoints:
    completed = [entry.event for entry in of_kind(log, CheckpointCompleted)]
    parts: dict[int, int] = {}
    for event in completed:
        if replicas > 1 and event.sent_bytes:
            part = event.sent_bytes // (replicas - 1)
            parts[event.rank] = max(parts.get(event.rank, 0), part)
    shares: dict[tuple[int, int, str], list[float]] = defaultdict(list)
    for entry in of_kind(log, Persisted):
        one = entry.event
        shares[one.generation or 0, one.iteration, one.where or ""].append(one.seconds or 0.0)
    whole = {key: took for key, took in shares.items() if len(took) >= max(1, machines)}
    speeds = [
        entry.event.agreed_bandwidth_bps or entry.event.bandwidth_bps
        for entry in of_kind(log, LinkMeasured)
    ]
    known = [speed for speed in speeds if speed]
    failed = dict.fromkeys(entry.event.cause or "" for entry in of_kind(log, PersistFailed))
    return Checkpoints(
        complete=len({(one.generation, one.iteration) for one in completed}),
        left_out=len(
            {
                (entry.event.generation, entry.event.iteration)
                for entry in of_kind(log, CheckpointLeftOut)
            }
        ),
        seconds=tuple(one.seconds for one in completed if one.rank == 0 and one.seconds),
        sent_bytes=sum(one.sent_bytes or 0 for one in completed),
        part_bytes=parts,
        bandwidth_bps=min(known) if known else None,
        persisted=len({(generation, iteration) for generation, iteration, _ in whole}),
        persist_s=tuple(max(took) for took in whole.values()),
        persist_failed=tuple(failed),
    )
