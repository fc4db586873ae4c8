"""Measure when the network is idle, and let checkpoint traffic go in those spans.

The network is busy from the issue of a collective to its end. Of an asynchronous one gloo tells the
end by the work's future, whether anybody waits for it or not; where that is not to be had it is
when it has been waited for. That is as the host sees it, which is right where the host does the
work; where a GPU does, it is `castor_runtime.trainer.stream_spans`.

An iteration begins when `engine.step` has ended. Its idle spans last until the state may first
change (`before_update`); the update is none, and neither is a wait for a checkpoint, which is taken
out of all times. (Gemini, sec. 5.4, profiles idle timespans over the first iterations too.)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from castor_runtime.trainer.span_profile import CollectiveTimes, IterationTimeline
from castor_runtime.trainer.watched_collectives import WatchedCollectives

LOOK_EVERY_S = 0.001
"""How often who waits at a gate looks what has changed."""


class Gate:
    """Lets pieces of a span go once that span has begun; knows when training communicates."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._span = 0
        self._open = False
        self._in_traffic = False
        self._on_change: Callable[[], None] = lambda: None
        self._look: Callable[[], None] | None = None

    @property
    def in_traffic(self) -> bool:
        """Training's collectives are under way."""
        return self._in_traffic

    @property
    def is_open(self) -> bool:
        """The iteration has no training traffic left: the update waits, or is about to."""
        return self._open

    def listen(self, on_change: Callable[[], None]) -> None:
        """Have `on_change` called after each change, in the thread that makes it."""
        self._on_change = on_change

    def look_with(self, look: Callable[[], None]) -> None:
        """Have `look` called by who asks and waits, again and again, to say what has changed."""
        self._look = look

    def look(self) -> None:
        """See what has changed."""
        if self._look is not None:
            self._look()

    def close(self) -> None:
        """Begin an iteration: only span 0 may go."""
        with self._changed:
            self._span = 0
            self._open = False
            self._in_traffic = False

    def occupy(self) -> None:
        """Training traffic has begun where there was none."""
        self._in_traffic = True
        self._on_change()

    def release(self, span: int) -> None:
        """Training traffic has ended: let pieces up to `span` go."""
        with self._changed:
            self._in_traffic = False
            self._span = max(self._span, span)
            self._changed.notify_all()
        self._on_change()

    def open(self) -> None:
        """Let all that is left go."""
        with self._changed:
            self._open = True
            self._changed.notify_all()
        self._on_change()

    def has_begun(self, span: int) -> bool:
        """Return whether `wait` for that span would return at once."""
        self.look()
        return self._open or self._span >= span

    def wait(self, span: int) -> None:
        """Return once pieces of `span` may go."""
        again_s = None if self._look is None else LOOK_EVERY_S
        while not self.has_begun(span):
            with self._changed:
                self._changed.wait_for(lambda: self._open or self._span >= span, again_s)


@dataclass(frozen=True, slots=True)
class NetworkUse:
    """Of a whole iteration, its update and waits for checkpoints included.

    Attributes:
        idle_ns: neither a collective nor checkpoint traffic was under way on this rank.
        train_busy_ns: a collective was.
    """

    idle_ns: int
    train_busy_ns: int


@dataclass(slots=True)
class _Collective:
    """One of the running iteration; times of the monotonic clock, -1 while they are to come."""

    op: str
    size_bytes: int
    issued_ns: int
    iteration: int
    with_all: bool
    waited_ns: int = -1
    resumed_ns: int = -1
    ended_ns: int = -1

    def times(self, origin_ns: int, now_ns: int) -> CollectiveTimes:
        def since(at_ns: int) -> int:
            return at_ns if at_ns < 0 else at_ns - origin_ns

        return CollectiveTimes(
            self.op,
            self.size_bytes,
            since(self.issued_ns),
            since(self.waited_ns),
            since(self.resumed_ns),
            since(now_ns if self.ended_ns < 0 else self.ended_ns),
            self.with_all,
        )


class IdleSpans(WatchedCollectives[_Collective]):
    """Watches the collectives of DeepSpeed; one watcher a process. Safe to use from any thread.

    Args:
        gate: is told which span has begun.
    """

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate
        self._lock = threading.Lock()
        self._iteration = 0
        self._collectives: list[_Collective] = []
        self._spans = 0
        self._under_way = 0
        self._transfers = 0
        self._idle_ns = 0
        self._train_busy_ns = 0
        self._waited_ns = 0
        self._before_update_ns: int | None = None
        self._origin_ns = self._accounted_ns = time.monotonic_ns()

    def end_iteration(self) -> tuple[IterationTimeline, NetworkUse]:
        """Return what the iteration that ends here was like; begin the next one."""
        with self._lock:
            now_ns = self._account()
            iteration_ns = now_ns - self._origin_ns
            before_ns = self._before_update_ns
            since_ns = iteration_ns if before_ns is None else before_ns - self._origin_ns
            timeline = IterationTimeline(
                tuple(one.times(self._origin_ns, now_ns) for one in self._collectives),
                before_update_ns=since_ns,
                iteration_ns=iteration_ns,
                update_ns=iteration_ns - since_ns - self._waited_ns,
            )
            use = NetworkUse(self._idle_ns, self._train_busy_ns)
            self._iteration += 1
            self._collectives = []
            self._spans = self._under_way = 0
            self._idle_ns = self._train_busy_ns = self._waited_ns = 0
            self._before_update_ns = None
            self._origin_ns = now_ns
        return timeline, use

    def before_update(self) -> None:
        """Say that the state is about to change; the first time in an iteration counts."""
        with self._lock:
            if self._before_update_ns is None:
                self._before_update_ns = time.monotonic_ns()

    def close_gate(self) -> None:
        """Begin the checkpoint of a moment: only span 0 may go."""
        self._gate.close()

    def open_gate(self) -> None:
        """Let all that is left of the checkpoint go."""
        self._gate.open()

    def stands_since_s(self) -> float:
        """Return since when training has nothing to do where its thread waits: since it does."""
        return 0.0

    def waited(self, wait_ns: int) -> None:
        """Say that the main thread has just waited for a checkpoint for so long."""
        with self._lock:
            if self._before_update_ns is None:
                self._origin_ns += wait_ns  # nothing was issued yet: the iteration begins later
            else:
                self._waited_ns += wait_ns

    def transfer_began(self) -> None:
        """Say that a piece of a checkpoint is on its way."""
        with self._lock:
            self._account()
            self._transfers += 1

    def transfer_ended(self) -> None:
        """Say that it has arrived; as often as `transfer_began`."""
        with self._lock:
            self._account()
            self._transfers = max(0, self._transfers - 1)

    def _account(self) -> int:
        """Add the time since the last call to what it was spent on; return the time now."""
        now_ns = time.monotonic_ns()
        passed_ns = now_ns - self._accounted_ns
        if self._under_way:
            self._train_busy_ns += passed_ns
        elif self._transfers == 0:
            self._idle_ns += passed_ns
        self._accounted_ns = now_ns
        return now_ns

    def _begin(self, op: str, size_bytes: int, *, on_cpu: bool, with_all: bool) -> _Collective:
        del on_cpu  # its work tells its end
        with self._lock:
            now_ns = self._account()
            record = _Collective(op, size_bytes, now_ns, self._iteration, with_all)
            if self._under_way == 0:
                self._gate.occupy()
            self._under_way += 1
            if self._before_update_ns is None:
                self._collectives.append(record)
                self._spans += with_all
            return record

    def _end(self, record: _Collective) -> None:
        with self._lock:
            if record.ended_ns >= 0:
                return
            now_ns = self._account()
            record.ended_ns = now_ns
            if record.iteration != self._iteration:
                return  # it was begun in an iteration that has ended since
            self._under_way -= 1
            if self._under_way:
                return
            # Released with the lock held, so that no collective begins in between unseen.
            self._gate.release(self._spans)

    def _blocked(self, record: _Collective) -> None:
        record.waited_ns, record.resumed_ns = record.issued_ns, record.ended_ns

    def _waits(self, record: _Collective) -> None:
        record.waited_ns = time.monotonic_ns()

    def _resumes(self, record: _Collective) -> None:
        record.resumed_ns = time.monotonic_ns()
