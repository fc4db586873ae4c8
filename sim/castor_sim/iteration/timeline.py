"""What happened in a simulated iteration, and the idle timespans of its network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from castor_sim.iteration.tasks import Kind, Lane, Task

COPY_LANE = "copy"
"""The engine that copies from GPU to CPU memory; a lane that no task runs on."""

START = -1
"""Stands for the start of the iteration where an idle span names what came before it."""


class Traffic(StrEnum):
    """What checkpoints do, beside the kinds of `tasks.Kind`."""

    CHUNK = "chunk"
    """A chunk of a replica on the network."""
    COPY = "copy"
    """A received chunk from GPU to CPU memory."""
    LOCAL_COPY = "local copy"
    """A part of the machine's own replica from GPU to CPU memory."""


@dataclass(frozen=True, slots=True)
class Interval:
    """One operation as it ran.

    Attributes:
        machine: where.
        lane: a `Lane`, or COPY_LANE.
        kind: a `Kind` or `Traffic`.
        name: for people.
        start_ns, end_ns: since the iteration started.
        size_bytes: what it moved; for checkpoint traffic, of all GPUs of the machine.
        task: the index of the task; None for checkpoint traffic.
    """

    machine: int
    lane: str
    kind: str
    name: str
    start_ns: int
    end_ns: int
    size_bytes: int = 0
    task: int | None = None

    @property
    def duration_ns(self) -> int:
        """How long it took."""
        return self.end_ns - self.start_ns


@dataclass(frozen=True, slots=True)
class IdleSpan:
    """Network time without traffic.

    Attributes:
        after: index of the network task that ended before it, or START.
        start_ns: since the iteration started.
        idle_ns: its length.
    """

    after: int
    start_ns: int
    idle_ns: int


def busy_ns(intervals: Iterable[Interval], machine: int, lane: str) -> int:
    """Return how long a lane was in use; its operations never overlap."""
    return sum(
        interval.duration_ns
        for interval in intervals
        if interval.machine == machine and interval.lane == lane
    )


def idle_spans(
    tasks: Sequence[Task], intervals: Iterable[Interval], machine: int
) -> tuple[IdleSpan, ...]:
    """Return a machine's idle spans from the start of the iteration to its update.

    One for each network task that is followed by idle time, and the last in any case: what comes
    between the last traffic and the update, where a schedule sends what fits nowhere else.
    """
    own = [interval for interval in intervals if interval.machine == machine]
    update_ns = min(interval.start_ns for interval in own if interval.kind == Kind.UPDATE)
    traffic = sorted(
        (interval.start_ns, interval.end_ns, interval.task)
        for interval in own
        if interval.task is not None and tasks[interval.task].is_training_traffic
    )
    spans: list[IdleSpan] = []
    after, idle_from_ns = START, 0
    for start_ns, end_ns, task in traffic:
        assert task is not None
        if start_ns > idle_from_ns:
            spans.append(IdleSpan(after, idle_from_ns, start_ns - idle_from_ns))
        after, idle_from_ns = task, end_ns
    assert all(tasks[span.after].lane is Lane.NETWORK for span in spans if span.after != START)
    return (*spans, IdleSpan(after, idle_from_ns, update_ns - idle_from_ns))


def average_spans(runs: Sequence[Sequence[IdleSpan]], shortest_ns: int) -> tuple[IdleSpan, ...]:
    """Return the mean of each span over several iterations (sec. 5.4), short ones left out.

    Jitter may let a span vanish in one iteration: it counts as 0 there. The last span of the first
    iteration stays the last, and stays whatever its length.

    Raises:
        ValueError: there is no iteration.
    """
    if not runs:
        raise ValueError("runs is empty: profile at least one iteration")
    seen: dict[int, list[IdleSpan]] = {}
    for run in runs:
        for span in run:
            seen.setdefault(span.after, []).append(span)
    means = [
        IdleSpan(
            after=after,
            start_ns=sum(span.start_ns for span in spans) // len(spans),
            idle_ns=sum(span.idle_ns for span in spans) // len(runs),
        )
        for after, spans in seen.items()
    ]
    last = runs[0][-1].after
    means.sort(key=lambda span: (span.after == last, span.start_ns, span.after))
    kept = [span for span in means[:-1] if span.idle_ns > 0 and span.idle_ns >= shortest_ns]
    return (*kept, means[-1])
