"""What orders threads: locks, conditions, starts and joins, each with the clock that it hands on.

`TRACKED` stands in for the module `threading` in the modules under test.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from castor_lab.fake_cuda.happens_before import Clock

_here = threading.local()


def thread_clock() -> Clock:
    """Return the calling thread's clock."""
    clock: Clock | None = getattr(_here, "clock", None)
    if clock is None:
        clock = _here.clock = Clock()
    return clock


def thread_name() -> str:
    """Return the calling thread's name as an actor."""
    return f"thread {threading.current_thread().name}"


class _Lock:
    """A lock that hands the clock of who releases it to who takes it next."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._clock = Clock()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        taken = self._lock.acquire(blocking, timeout)
        if taken:
            thread_clock().join(self._clock)
        return taken

    def release(self) -> None:
        self._hand_on()
        self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_raised: object) -> None:
        self.release()

    # What `threading.Condition` asks of a lock that may be taken twice.

    def _release_save(self) -> Any:
        self._hand_on()
        return self._lock._release_save()  # type: ignore[attr-defined]  # as Condition does

    def _acquire_restore(self, saved: Any) -> None:
        self._lock._acquire_restore(saved)  # type: ignore[attr-defined]  # as Condition does
        thread_clock().join(self._clock)

    def _is_owned(self) -> bool:
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]  # as Condition does

    def _hand_on(self) -> None:
        clock = thread_clock()
        clock.tick(thread_name())
        self._clock.join(clock)


class Thread(threading.Thread):
    """A thread that begins with its starter's clock, and hands its own to who joins it."""

    def start(self) -> None:
        """See `threading.Thread.start`."""
        self._began = thread_clock().copy()
        super().start()

    def run(self) -> None:
        """See `threading.Thread.run`."""
        _here.clock = self._began
        try:
            super().run()
        finally:
            self._ended = thread_clock().copy()

    def join(self, timeout: float | None = None) -> None:
        """See `threading.Thread.join`."""
        super().join(timeout)
        if not self.is_alive():
            thread_clock().join(self._ended)


def _condition() -> threading.Condition:
    lock: Any = _Lock()
    return threading.Condition(lock)


TRACKED = SimpleNamespace(Lock=_Lock, RLock=_Lock, Condition=_condition, Thread=Thread)
