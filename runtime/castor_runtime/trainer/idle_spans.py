"""Measure when the network is idle, and let checkpoint traffic go in those spans.

DeepSpeed sends everything through one backend object, `deepspeed.comm.comm.cdb`; its collectives
are wrapped. The network is busy from the issue of a collective until it returns, or until its
handle has been waited for; it is idle otherwise. Span 0 begins with the iteration, span k when the
k-th busy time ends. (Gemini, sec. 5.4, profiles idle timespans over the first iterations too.)
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

_COLLECTIVES = (
    "all_reduce",
    "all_reduce_coalesced",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "broadcast",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_base",
    "all_gather_coalesced",
    "all_to_all_single",
    "all_to_all",
    "gather",
    "scatter",
)


class Gate:
    """Lets pieces of a span go once that span has begun; knows when training communicates."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._span = 0
        self._open = False
        self._in_traffic = False
        self._on_change: Callable[[], None] = lambda: None

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
        return self._open or self._span >= span

    def wait(self, span: int) -> None:
        """Return once pieces of `span` may go."""
        with self._changed:
            self._changed.wait_for(lambda: self.has_begun(span))


class IdleSpans:
    """Watches the collectives of DeepSpeed; one watcher a process.

    Args:
        gate: is told which span has begun.
        on_progress: called at each collective.
    """

    def __init__(self, gate: Gate, on_progress: Callable[[], None]) -> None:
        self._gate = gate
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._busy = 0
        self._iteration = 0
        self._idle_since_ns = time.monotonic_ns()
        self._spans_ns: list[int] = []
        self._wrapped: list[tuple[Any, str]] = []

    def install(self, backend: Any) -> None:
        """Wrap the collectives of `backend`; `remove` takes the wrappers away."""
        for name in _COLLECTIVES:
            if hasattr(backend, name):
                setattr(backend, name, self._watching(getattr(backend, name)))
                self._wrapped.append((backend, name))

    def remove(self) -> None:
        """Undo `install`."""
        for backend, name in self._wrapped:
            delattr(backend, name)
        self._wrapped.clear()

    def begin_iteration(self) -> tuple[int, ...]:
        """Return the idle spans of the iteration that ends here, in nanoseconds; begin the next."""
        now_ns = time.monotonic_ns()
        with self._lock:
            spans_ns = self._spans_ns
            if self._busy == 0:
                spans_ns.append(now_ns - self._idle_since_ns)
            self._spans_ns = []
            self._busy = 0
            self._iteration += 1
            self._idle_since_ns = now_ns
        return tuple(spans_ns)

    def _watching(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(collective)
        def watched(*arguments: Any, **named: Any) -> Any:
            iteration = self._begin()
            try:
                handle = collective(*arguments, **named)
            except BaseException:
                self._end(iteration)
                raise
            if handle is None or not hasattr(handle, "wait"):
                self._end(iteration)
                return handle
            return _Watched(handle, functools.partial(self._end, iteration))

        return watched

    def _begin(self) -> int:
        self._on_progress()
        now_ns = time.monotonic_ns()
        with self._lock:
            if self._busy == 0:
                self._spans_ns.append(now_ns - self._idle_since_ns)
                self._gate.occupy()
            self._busy += 1
            return self._iteration

    def _end(self, iteration: int) -> None:
        now_ns = time.monotonic_ns()
        with self._lock:
            if iteration != self._iteration or self._busy == 0:
                return  # it was begun in an iteration that has ended since
            self._busy -= 1
            if self._busy:
                return
            self._idle_since_ns = now_ns
            span = len(self._spans_ns)
        self._gate.release(span)


class _Watched:
    """A collective's handle that says when it was first waited for; else the handle itself."""

    def __init__(self, handle: Any, ended: Callable[[], None]) -> None:
        self._handle = handle
        self._ended: Callable[[], None] | None = ended

    def wait(self, *arguments: Any, **named: Any) -> Any:
        try:
            return self._handle.wait(*arguments, **named)
        finally:
            if self._ended is not None:
                self._ended()
                self._ended = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


def typical_spans(iterations: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the mean of each span over those iterations that have as many as the last one.

    The first iterations of DeepSpeed differ: it fetches parameters as it meets them, and only then
    knows their order.
    """
    count = len(iterations[-1])
    alike = [spans for spans in iterations if len(spans) == count]
    return tuple(sum(column) // len(alike) for column in zip(*alike, strict=True))


def fold_spans(spans_ns: Sequence[int], count: int) -> tuple[int, ...]:
    """Return `count` spans: those beyond it are added to the last."""
    if len(spans_ns) <= count:
        return tuple(spans_ns)
    return (*spans_ns[: count - 1], sum(spans_ns[count - 1 :]))
