"""What one iteration's traffic looks like: its collectives, and the idle spans between them.

There is one idle span before each collective of all ranks, and one more before the update: span k
lies between the end of all collectives before k and the issue of k, less those of some ranks only,
and lasts 0 ns where they overlap. So all ranks, which run the same program, have the same spans,
and one schedule fits them all.

Iterations differ by a few per cent (Gemini sec. 5.4 measured under 10 %); a profile takes medians
over several. The first iterations of DeepSpeed differ altogether: it fetches parameters as it meets
them, and only then knows their order. Only those that are like the last one count.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from castor_policy.drift import has_drifted
from castor_records.events.training import SpansProfiled

_KEPT = 64
"""Iterations that a last profile is made of."""


@dataclass(frozen=True, slots=True)
class CollectiveTimes:
    """One collective, in nanoseconds from the iteration's start.

    Attributes:
        op: its name in `deepspeed.comm`.
        size_bytes: the larger of what goes in and what comes out, on this rank.
        issued_ns: when the main thread called it.
        waited_ns: when the main thread began to wait for it; `issued_ns` for a blocking one, -1 if
            it was never waited for.
        resumed_ns: when the main thread went on; -1 likewise.
        ended_ns: when it was over, waited for or not.
        with_all: whether all ranks take part.
    """

    op: str
    size_bytes: int
    issued_ns: int
    waited_ns: int
    resumed_ns: int
    ended_ns: int
    with_all: bool = True


@dataclass(frozen=True, slots=True)
class IterationTimeline:
    """One iteration as its main thread saw it; waits for checkpoints are taken out.

    Attributes:
        collectives: in the order of their issue, up to the update.
        before_update_ns: when the state may first change.
        iteration_ns: when `engine.step` has ended.
        update_ns: from the one to the other, less waits for checkpoints.
    """

    collectives: tuple[CollectiveTimes, ...]
    before_update_ns: int
    iteration_ns: int
    update_ns: int

    @property
    def spans_ns(self) -> tuple[int, ...]:
        """Its idle spans; see the module's head."""
        spans: list[int] = [0]
        busy_until_ns = 0
        for collective in self.collectives:
            spans[-1] += max(0, collective.issued_ns - busy_until_ns)
            busy_until_ns = max(busy_until_ns, collective.ended_ns)
            if collective.with_all:
                spans.append(0)
        spans[-1] += max(0, self.before_update_ns - busy_until_ns)
        return tuple(spans)

    @property
    def program(self) -> tuple[tuple[str, int], ...]:
        """What it sent, whenever: iterations with the same program are alike."""
        return tuple((collective.op, collective.size_bytes) for collective in self.collectives)


@dataclass(frozen=True, slots=True)
class SpanProfile:
    """A typical iteration.

    Attributes:
        timeline: medians of each time.
        iterations: how many were alike.
        deviation: standard deviation of their total idle time over its mean.
    """

    timeline: IterationTimeline
    iterations: int
    deviation: float

    @property
    def spans_ns(self) -> tuple[int, ...]:
        """Its idle spans."""
        return self.timeline.spans_ns

    def to_event(self, *, generation: int, rank: int, iteration: int) -> SpansProfiled:
        """Return the event that tells of it, in which `iteration` is the last one of those."""
        timeline = self.timeline
        return SpansProfiled(
            generation=generation,
            rank=rank,
            iteration=iteration,
            iterations=self.iterations,
            spans_ns=tuple(self.spans_ns),
            ops=tuple(one.op for one in timeline.collectives),
            op_bytes=tuple(one.size_bytes for one in timeline.collectives),
            issued_ns=tuple(one.issued_ns for one in timeline.collectives),
            waited_ns=tuple(one.waited_ns for one in timeline.collectives),
            resumed_ns=tuple(one.resumed_ns for one in timeline.collectives),
            ended_ns=tuple(one.ended_ns for one in timeline.collectives),
            before_update_ns=timeline.before_update_ns,
            iteration_ns=timeline.iteration_ns,
            update_ns=timeline.update_ns,
            deviation=self.deviation,
        )


class Profiler:
    """Keeps the newest iterations of a generation and says when a profile is to be made of them.

    Args:
        window: how many iterations make a profile, and how many show a drift; >= 1.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._measured: deque[IterationTimeline] = deque(maxlen=max(window, _KEPT))
        self._planned_ns: tuple[int, ...] | None = None
        self._first = True
        self._since = 0

    @property
    def is_measuring(self) -> bool:
        """Whether the first profile is still to be made: nothing may disturb the iterations."""
        return self._planned_ns is None

    def begin_anew(self, planned_ns: tuple[int, ...]) -> None:
        """Begin a generation, as all its ranks do.

        Args:
            planned_ns: the spans that its checkpoints are scheduled by from the start, the same on
                all ranks; empty: they are to be measured.
        """
        self._measured.clear()
        # Drift is told by what this rank measured itself, where it did.
        self._planned_ns = (self._planned_ns or planned_ns) if planned_ns else None
        self._first, self._since = True, 0

    def add(self, timeline: IterationTimeline) -> None:
        """Take an iteration in; the first one, in which memory is touched, does not count."""
        if self._first:
            self._first = False
            return
        self._measured.append(timeline)
        self._since += 1

    def due(self, *, drift: bool) -> tuple[SpanProfile, str] | None:
        """Return a new profile and its reason, "start" or "drift"; None if none is due.

        Args:
            drift: all ranks agreed that the schedule no longer fits.
        """
        starts = self.is_measuring and self._since >= self._window
        if not starts and not (drift and not self.is_measuring and self._since):
            return None
        profile = typical_iteration(list(self._measured)[-min(self._since, self._window) :])
        self._planned_ns, self._since = profile.spans_ns, 0
        return profile, "start" if starts else "drift"

    def has_drifted(self) -> bool:
        """Return whether a window since the last profile shows other idle spans."""
        if self._planned_ns is None or self._since < self._window:
            return False
        recent = [one.spans_ns for one in list(self._measured)[-self._window :]]
        return has_drifted(self._planned_ns, recent)

    def final(self) -> SpanProfile | None:
        """Return a profile of all iterations that are kept; None if there are none."""
        return typical_iteration(tuple(self._measured)) if self._measured else None


def typical_iteration(timelines: Sequence[IterationTimeline]) -> SpanProfile:
    """Return the median of each time over those iterations that are like the last one.

    Raises:
        ValueError: there is no iteration.
    """
    if not timelines:
        raise ValueError("no iteration was measured: measure one or more")
    alike = [one for one in timelines if one.program == timelines[-1].program]
    columns = zip(*(one.collectives for one in alike), strict=True)
    timeline = IterationTimeline(
        tuple(_typical_collective(column) for column in columns),
        before_update_ns=_median([one.before_update_ns for one in alike]),
        iteration_ns=_median([one.iteration_ns for one in alike]),
        update_ns=_median([one.update_ns for one in alike]),
    )
    idle_ns = [sum(one.spans_ns) for one in alike]
    mean_ns = statistics.fmean(idle_ns)
    deviation = statistics.pstdev(idle_ns) / mean_ns if mean_ns else 0.0
    return SpanProfile(timeline, len(alike), deviation)


def fold_spans(spans_ns: Sequence[int], count: int) -> tuple[int, ...]:
    """Return `count` spans: those beyond it are added to the last."""
    if len(spans_ns) <= count:
        return tuple(spans_ns)
    return (*spans_ns[: count - 1], sum(spans_ns[count - 1 :]))


def _typical_collective(measured: Sequence[CollectiveTimes]) -> CollectiveTimes:
    return CollectiveTimes(
        measured[0].op,
        measured[0].size_bytes,
        issued_ns=_median([one.issued_ns for one in measured]),
        waited_ns=_median([one.waited_ns for one in measured]),
        resumed_ns=_median([one.resumed_ns for one in measured]),
        ended_ns=_median([one.ended_ns for one in measured]),
        with_all=measured[0].with_all,
    )


def _median(values: Sequence[int]) -> int:
    """Return a value that was measured, so that -1 stays what it says."""
    return statistics.median_low(values)
