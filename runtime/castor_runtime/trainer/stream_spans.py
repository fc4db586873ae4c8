"""Idle spans where collectives are a GPU's: `castor_runtime.trainer.idle_spans`, by its own time.

The host runs ahead of the GPU, and a wait for a collective returns at once: it only queues that the
stream waits. So marks are queued beside each collective, on the stream that it is called on or
waited for on, and read when the GPU has passed them. One is over by the mark behind its first wait:
its stream passes that when the collective has ended, or later where it comes to it later; an end
is never taken for earlier than it was. (DeepSpeed waits on the stream of the collectives
themselves, which does nothing else.)

What an iteration was like is told when the next one ends, on every rank alike, for all ranks must
have measured as many when one schedule is made of them. By then the GPU has passed its marks: the
checkpoint between the two is complete. Where it has not, the host is a whole iteration ahead and
waits for it: the GPU has enough queued, and does not notice.

Which span has begun, and so what the gate lets go, only the GPU knows. Whoever waits at the gate
asks for the marks that it has passed, a few each millisecond, and nobody asks else. Times by the
schedule, from the iteration's begin on, would need no asking, and would send into training's
collectives whenever an iteration is not like the others. Neither does the gate open when the host
comes to the update, long before the GPU does, but when that has come there too.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from castor_runtime.trainer.idle_spans import Gate, NetworkUse
from castor_runtime.trainer.span_profile import CollectiveTimes, IterationTimeline
from castor_runtime.trainer.watched_collectives import WatchedCollectives

Interval = tuple[int, int]
"""Begin and end, in nanoseconds of CLOCK_MONOTONIC."""


class Mark(Protocol):
    """A point in what the GPU was asked for."""

    def passed(self) -> bool:
        """Return whether the GPU has come there; does not wait."""
        ...

    def wait(self) -> None:
        """Wait until it has."""
        ...

    def ns(self) -> int:
        """Return when, in nanoseconds of CLOCK_MONOTONIC; it must have passed."""
        ...


class DeviceClock(Protocol):
    """Sets marks, and says what they are by the host's clock."""

    def mark(self) -> Mark:
        """Queue a mark on the calling thread's stream."""
        ...

    def renew(self) -> None:
        """Compare the clocks anew; waits for the calling thread's stream, which should be idle."""
        ...

    def follow(self, mark: Mark) -> None:
        """Reckon from this mark on, which has passed: short times are the more exact ones."""
        ...


@dataclass(frozen=True, slots=True)
class HostMark:
    """A point in time of the host's own.

    Attributes:
        at_ns: of CLOCK_MONOTONIC.
    """

    at_ns: int

    def passed(self) -> bool:
        """It has."""
        return True

    def wait(self) -> None:
        """Nothing to wait for."""

    def ns(self) -> int:
        """Return it."""
        return self.at_ns


@dataclass(slots=True)
class _Collective:
    op: str
    size_bytes: int
    on_cpu: bool
    with_all: bool
    issued: Mark
    waited: Mark | None = None
    resumed: Mark | None = None
    ended: Mark | None = None

    def interval(self, end_ns: int) -> Interval:
        return self.issued.ns(), min(_ns(self.ended, end_ns), end_ns)

    def times(self, origin_ns: int, end_ns: int) -> CollectiveTimes:
        def since(mark: Mark | None) -> int:
            known = mark is not None and mark.passed()
            return max(0, mark.ns() - origin_ns) if mark is not None and known else -1

        return CollectiveTimes(
            self.op,
            self.size_bytes,
            since(self.issued),
            since(self.waited),
            since(self.resumed),
            max(0, self.interval(end_ns)[1] - origin_ns),
            self.with_all,
        )


@dataclass(slots=True)
class _Iteration:
    """One iteration, as it is queued.

    Attributes:
        began: its begin.
        origin: likewise, after waits for the checkpoint before it.
        collectives: up to the update.
        later: those of the update.
        before_update: the state may change from here on.
        resumed: the host has waited for a checkpoint since.
        opens: the gate opens here.
        over: so many collectives are over, and all before them.
        spans: how many of those are of all ranks.
        said: what the gate was told of last: whether training communicates, and the span.
    """

    began: Mark
    origin: Mark
    collectives: list[_Collective] = field(default_factory=list)
    later: list[_Collective] = field(default_factory=list)
    before_update: Mark | None = None
    resumed: Mark | None = None
    opens: Mark | None = None
    over: int = 0
    spans: int = 0
    said: tuple[bool, int] = (False, 0)

    def wait(self) -> None:
        """Wait until all that began in it has: a stream of the user's may be behind the others."""
        issued = [one.issued for one in (*self.collectives, *self.later)]
        for mark in (self.began, self.origin, self.before_update, self.resumed, *issued):
            if mark is not None:
                mark.wait()

    def timeline(self, end: Mark) -> IterationTimeline:
        """Return what it was like; streams that do not wait for each other are no time apart."""
        origin_ns = self.origin.ns()
        end_ns = max(origin_ns, end.ns())
        before_ns = _within(self.before_update, origin_ns, end_ns)
        waited_ns = 0
        if self.resumed is not None:
            waited_ns = _within(self.resumed, before_ns, end_ns) - before_ns
        return IterationTimeline(
            tuple(one.times(origin_ns, end_ns) for one in self.collectives),
            before_update_ns=before_ns - origin_ns,
            iteration_ns=end_ns - origin_ns,
            update_ns=end_ns - before_ns - waited_ns,
        )

    def use(self, end: Mark, transfers: Iterable[Interval]) -> NetworkUse:
        within = (self.began.ns(), end.ns())
        busy = [one.interval(within[1]) for one in (*self.collectives, *self.later)]
        used_ns = covered_ns([*busy, *transfers], within)
        return NetworkUse(within[1] - within[0] - used_ns, covered_ns(busy, within))

    def state(self) -> tuple[bool, int]:
        """Return whether training communicates, and how many collectives of all ranks are over."""
        while self.over < len(self.collectives) and _is_over(self.collectives[self.over]):
            self.spans += self.collectives[self.over].with_all
            self.over += 1
        for one in self.collectives[self.over :]:
            if not one.issued.passed():
                break
            if not _is_over(one):
                return True, self.spans
        return False, self.spans


class StreamSpans(WatchedCollectives[_Collective]):
    """As `IdleSpans`, of a backend whose work a GPU does; tells an iteration late.

    Args:
        gate: told of each pause while somebody waits at it.
        clock: the GPU's.
        now_ns: the host's, CLOCK_MONOTONIC.
    """

    def __init__(
        self, gate: Gate, clock: DeviceClock, now_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        super().__init__()
        self._gate = gate
        self._clock = clock
        self._now_ns = now_ns
        self._lock = threading.Lock()
        self._current: _Iteration | None = None
        self._ended: deque[tuple[_Iteration, Mark]] = deque()
        self._transfers: deque[Interval] = deque()
        self._under_way = 0
        self._since_ns = 0
        gate.look_with(self.look)

    def end_iteration(self) -> tuple[IterationTimeline, NetworkUse] | None:
        """Return what the iteration before the one that ends here was like; None: none was."""
        mark = self._clock.mark()
        with self._lock:
            if self._current is not None:
                self._ended.append((self._current, mark))
            self._current = _Iteration(mark, mark)
            if len(self._ended) < 2:
                return None
            iteration, end = self._ended.popleft()
        end.wait()
        iteration.wait()
        timeline = iteration.timeline(end)
        with self._lock:
            use = iteration.use(end, self._transfers_since(iteration.began.ns()))
        self._clock.follow(end)
        return timeline, use

    def before_update(self) -> None:
        """Say that the state is about to change; the first time in an iteration counts."""
        if self._current is not None and self._current.before_update is None:
            self._current.before_update = self._clock.mark()

    def close_gate(self) -> None:
        """Begin the checkpoint of a moment: only span 0 may go."""
        if self._current is not None:
            self._current.opens = None
        self._gate.close()

    def open_gate(self) -> None:
        """Let all that is left go, once the GPU has come to where the host is."""
        if self._current is None:
            self._gate.open()
        else:
            self._current.opens = self._clock.mark()

    def stands_since_s(self) -> float:
        """Return since when the GPU has nothing to do, where the host waits behind an open gate.

        Seconds of CLOCK_MONOTONIC; the time now, while the GPU has something to do.
        """
        opens = None if self._current is None else self._current.opens
        stands = opens is not None and opens.passed()
        return (opens.ns() if opens is not None and stands else self._now_ns()) / 1e9

    def waited(self, _wait_ns: int) -> None:
        """Say that the main thread has just waited for a checkpoint."""
        current = self._current
        if current is None:
            return
        if current.before_update is None:
            if not current.collectives:
                current.origin = self._clock.mark()  # it begins later
            return
        if current.before_update.passed():
            self._clock.renew()  # the GPU has nothing to do
        if current.resumed is None:
            current.resumed = self._clock.mark()

    def transfer_began(self) -> None:
        """Say that a piece of a checkpoint is on its way."""
        with self._lock:
            if self._under_way == 0:
                self._since_ns = self._now_ns()
            self._under_way += 1

    def transfer_ended(self) -> None:
        """Say that it has arrived; as often as `transfer_began`."""
        with self._lock:
            self._under_way = max(0, self._under_way - 1)
            if self._under_way == 0:
                self._transfers.append((self._since_ns, self._now_ns()))

    def look(self) -> None:
        """Tell the gate what the GPU has come to; called by who waits at it."""
        with self._lock:
            current = self._current
            if current is None:
                return
            before, now = current.said, current.state()
            current.said = now
            opens = current.opens is not None and current.opens.passed()
        if now[0] and not before[0]:
            self._gate.occupy()
        if not now[0] and now != before:
            self._gate.release(now[1])
        if opens and not self._gate.is_open:
            self._gate.open()

    def _transfers_since(self, began_ns: int) -> list[Interval]:
        """Return the transfers that ended after `began_ns`, and that under way; drop the others."""
        while self._transfers and self._transfers[0][1] <= began_ns:
            self._transfers.popleft()
        now = [(self._since_ns, self._now_ns())] if self._under_way else []
        return [*self._transfers, *now]

    def _begin(self, op: str, size_bytes: int, *, on_cpu: bool, with_all: bool) -> _Collective:
        record = _Collective(op, size_bytes, on_cpu, with_all, self._mark(on_cpu=on_cpu))
        with self._lock:
            current = self._current
            if current is not None:
                updates = current.before_update is not None
                (current.later if updates else current.collectives).append(record)
        return record

    def _end(self, record: _Collective) -> None:
        if record.ended is None:
            record.ended = self._mark(on_cpu=record.on_cpu)

    def _blocked(self, record: _Collective) -> None:
        record.waited, record.resumed = record.issued, record.ended

    def _waits(self, record: _Collective) -> None:
        record.waited = self._mark(on_cpu=record.on_cpu)

    def _resumes(self, record: _Collective) -> None:
        record.resumed = self._mark(on_cpu=True) if record.on_cpu else record.ended

    def _mark(self, *, on_cpu: bool) -> Mark:
        return HostMark(self._now_ns()) if on_cpu else self._clock.mark()


def covered_ns(intervals: Iterable[Interval], within: Interval) -> int:
    """Return the length of the union of intervals, as far as it lies within another."""
    total_ns, reached_ns = 0, within[0]
    for began_ns, ended_ns in sorted(intervals):
        low, high = max(began_ns, reached_ns), min(ended_ns, within[1])
        if high > low:
            total_ns += high - low
            reached_ns = high
    return total_ns


def _is_over(collective: _Collective) -> bool:
    return collective.ended is not None and collective.ended.passed()


def _within(mark: Mark | None, low_ns: int, high_ns: int) -> int:
    return high_ns if mark is None else min(max(mark.ns(), low_ns), high_ns)


def _ns(mark: Mark | None, otherwise_ns: int) -> int:
    return mark.ns() if mark is not None and mark.passed() else otherwise_ns
