"""Streams and events: what is queued where, what waits for what, and when each is done.

A stream does one thing after the other. Each is queued by a thread, takes some nanoseconds of the
fake's time, and begins when the stream is free and the thread has asked for it.
"""

from __future__ import annotations

import threading
from typing import Protocol

import numpy as np

from castor_lab.fake_cuda.happens_before import Clock
from castor_lab.fake_cuda.threads import thread_clock


class Gpu(Protocol):
    """What streams, events and memory ask of the GPU that they are of."""

    lock: threading.RLock
    now_ns: int

    def touch(self, what: str) -> None:
        """Note what a thread does that has not said which GPU is its own."""
        ...

    def current_stream(self) -> Stream:
        """Return the calling thread's."""
        ...

    def host_waits(self, until_ns: int, clock: Clock, *, spins: bool) -> None:
        """Have the calling thread wait for the GPU."""
        ...


class Stream:
    """A queue of a GPU.

    Args:
        cuda: whose.
        name: as an actor.

    Attributes:
        clock: what comes before what is queued next.
        free_ns: when all that is queued is done.
    """

    def __init__(self, cuda: Gpu, name: str) -> None:
        self.name = name
        self.clock = Clock()
        self.free_ns = 0
        self._cuda = cuda

    def wait_stream(self, other: Stream) -> None:
        """Have what is queued next wait for all that is queued on another stream."""
        self.wait_event(other.record_event())

    def wait_event(self, event: Event) -> None:
        """Have what is queued next wait for an event."""
        self._cuda.touch("wait_event")
        with self._cuda.lock:
            self.clock.join(event.clock)
            self.free_ns = max(self.free_ns, event.time_ns)

    def record_event(self, event: Event | None = None) -> Event:
        """Queue an event, a new one or this one."""
        recorded = Event(self._cuda) if event is None else event
        recorded.record(self)
        return recorded

    def synchronize(self) -> None:
        """Wait, in the calling thread, for all that is queued."""
        self.record_event(Event(self._cuda, blocking=True)).synchronize()


class Event:
    """A point in a stream.

    Args:
        cuda: whose.
        enable_timing: whether it may be asked for times.
        blocking: a thread that waits for it sleeps, and does not spin.

    Attributes:
        clock: what comes before it.
        time_ns: when it is passed, by the fake's time.
    """

    def __init__(self, cuda: Gpu, *, enable_timing: bool = False, blocking: bool = False) -> None:
        self.clock = Clock()
        self.time_ns = 0
        self._cuda = cuda
        self._times = enable_timing
        self._blocking = blocking

    def record(self, stream: Stream | None = None) -> None:
        """Queue it."""
        self._cuda.touch("record")
        with self._cuda.lock:
            on = self._cuda.current_stream() if stream is None else stream
            on.clock.join(thread_clock())
            on.clock.tick(on.name)
            on.free_ns = max(on.free_ns, self._cuda.now_ns)
            self.clock, self.time_ns = on.clock.copy(), on.free_ns

    def wait(self, stream: Stream | None = None) -> None:
        """Have a stream wait for it."""
        (self._cuda.current_stream() if stream is None else stream).wait_event(self)

    def query(self) -> bool:
        """Return whether it is passed."""
        self._cuda.touch("query")
        with self._cuda.lock:
            passed = self.time_ns <= self._cuda.now_ns
            if passed:
                thread_clock().join(self.clock)
            return passed

    def synchronize(self) -> None:
        """Wait for it in the calling thread."""
        self._cuda.touch("synchronize")
        self._cuda.host_waits(self.time_ns, self.clock, spins=not self._blocking)

    def elapsed_time(self, end: Event) -> float:
        """Return the milliseconds to another one, in single precision as CUDA does."""
        if not (self._times and end._times):
            raise RuntimeError("Both events must be created with argument 'enable_timing=True'.")
        if max(self.time_ns, end.time_ns) > self._cuda.now_ns:
            raise RuntimeError("Both events must be completed before calculating elapsed time.")
        return float(np.float32((end.time_ns - self.time_ns) / 1e6))
