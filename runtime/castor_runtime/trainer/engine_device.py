"""What devices have in common whose copies an engine makes: its threads, times and failures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from castor_runtime.trainer.copy_engine import CopyEngine, Interval, Span
from castor_runtime.trainer.staging import Copy


class EngineDevice:
    """The part of a `Device` that is the same however pieces travel.

    A subclass calls `_start` when all of it is made.

    Args:
        engine: copies out of the accelerator's memory.
        failed: says in words what an error of its threads is.
        piece_bytes: in which the own replica is copied.
    """

    def __init__(self, engine: CopyEngine, failed: str, piece_bytes: int) -> None:
        self._engine = engine
        self._failed = failed
        self._piece_bytes = piece_bytes
        self._changed = threading.Condition()
        self._own = torch.empty(0, dtype=torch.uint8)
        self._state_free: Callable[[], None] = lambda: None
        self._captured_bytes = 0
        self._captured_ns = time.monotonic_ns()
        self._intervals: list[Interval] = []
        self._failure: BaseException | None = None
        self._closing = False
        self._threads: list[threading.Thread] = []

    def intervals(self) -> tuple[Interval, ...]:
        """Return what took place since the last `capture`, in the order of the ends."""
        with self._changed:
            return tuple(self._intervals)

    def enter_thread(self) -> None:
        """Say that the calling thread will use this device."""
        self._engine.enter_thread()

    def note_update(self) -> None:
        """Say that the state is about to be changed by what the calling thread asks for."""
        self._engine.note_update()

    def moment(self) -> AbstractContextManager[Any]:
        """Return what the thread that trains looks at its state in, to have it captured."""
        return self._engine.moment()

    def pin(self, memory: torch.Tensor) -> None:
        """See `Device.pin`."""
        self._engine.pin(memory)

    def unpin(self) -> None:
        """See `Device.unpin`."""
        self._engine.unpin()

    def aside(self) -> AbstractContextManager[Any]:
        """Return what to look at captured live state in: training does not wait for it."""
        return self._engine.aside()

    def close(self) -> None:
        """End the threads; nothing may be under way."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Return when `done`, which is asked after each change.

        Raises:
            RuntimeError: a thread of the device failed.
        """
        with self._changed:
            self._changed.wait_for(lambda: done() or self._failure is not None)
            if self._failure is not None:
                raise RuntimeError(f"{self._failed}: {self._failure}") from self._failure

    def _copy(self, copies: Sequence[Copy]) -> Span:
        """Copy from device to CPU memory; done on return."""
        return self._engine.begin(copies)()

    def _start(self, runs: Mapping[str, Callable[[], None]]) -> None:
        """Start the threads, by their names."""
        self._threads = [
            threading.Thread(target=self._guarded, args=(run,), name=name, daemon=True)
            for name, run in runs.items()
        ]
        for thread in self._threads:
            thread.start()

    def _guarded(self, run: Callable[[], None]) -> None:
        try:
            self._engine.enter_thread()
            run()
        except BaseException as error:  # noqa: BLE001 - raised in the threads that wait
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _own_copied(self, start: int, size_bytes: int, span: Span) -> None:
        """Take in that a piece of the own replica is there."""
        with self._changed:
            number = start // self._piece_bytes
            self._intervals.append(Interval("own", number, *span, size_bytes))
            self._captured_bytes = start + size_bytes
            self._captured_ns = span[1]
            self._changed.notify_all()
