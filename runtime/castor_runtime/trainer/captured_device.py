"""Checkpoints of an accelerator's state, sent by the CPU: the own replica is filled, and sent.

The copy engine fills the own replica piece after piece, straight after the update and whether or
not training communicates: the way to CPU memory is not the network. A round is posted once its
bytes are there, and goes over TCP from shared memory into the peers' shared memory. The live state
is free when the own replica is whole: what waits for no more than that does not wait for the
network (`update_after="capture"`, and the first few iterations' settling).

No kernel runs on the accelerator for it, no memory is taken there, and training's communicators are
alone: nothing of a checkpoint can be in one of NCCL's circles (docs/runtime.md, "Sending from
GPUs"). `castor_runtime.trainer.staged_device` is the other way.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from castor_policy.chunk_schedule import Link
from castor_runtime.state.sections import Section
from castor_runtime.trainer.copy_engine import CopyEngine, Span
from castor_runtime.trainer.device import (
    Arrived,
    Direct,
    Post,
    Receive,
    Send,
    Transfer,
    post_direct,
)
from castor_runtime.trainer.engine_device import EngineDevice
from castor_runtime.trainer.live_pieces import LivePieces
from castor_runtime.trainer.staging import LiveBytes

_QUEUED = 2
"""Pieces that the copy engine has to do at once."""


class CapturedDevice(EngineDevice):
    """The `Device` that sends what it has captured; see the module's head.

    Args:
        engine: copies out of the accelerator's memory.
        post: by which pieces in CPU memory travel.
        piece_bytes: in which the own replica is copied.
    """

    copy_link: Link | None = None
    launches_in_order = False

    def __init__(self, engine: CopyEngine, post: Post, piece_bytes: int) -> None:
        super().__init__(engine, "a capture failed", piece_bytes)
        self._post = post
        self._live: LiveBytes | None = None
        self._pieces = LivePieces(self._copy, self._allocate)
        self._start({"castor-capture": self._run})

    def capture(
        self,
        sections: Sequence[Section],
        live: Sequence[torch.Tensor | None],
        own: torch.Tensor,
        state_free: Callable[[], None],
    ) -> None:
        """Begin to copy `live` into `own`; the part before must be whole."""
        with self._engine.preparing():
            read = LiveBytes(sections, live, own.numel())  # copies what does not lie in one piece
        with self._changed:
            self._own = own
            self._state_free = state_free
            self._captured_bytes = 0
            self._captured_ns = time.monotonic_ns()
            self._intervals = []
            self._live = read
            self._changed.notify_all()
        self._pieces.let_go()

    def hold_live(
        self, sections: Sequence[Section], live: Sequence[torch.Tensor | None], size_bytes: int
    ) -> None:
        """See `Device.hold_live`."""
        with self._engine.preparing():
            self._pieces.hold(sections, live, size_bytes)  # copies what does not lie in one piece
        with self._changed:
            self._captured_bytes = size_bytes
            self._captured_ns = time.monotonic_ns()
            self._intervals = []

    def read(self, start: int, target: torch.Tensor) -> None:
        """See `Device.read`."""
        self._pieces.read(start, target)

    def _allocate(self, size_bytes: int) -> torch.Tensor:
        memory = torch.empty(max(size_bytes, self._piece_bytes), dtype=torch.uint8)
        self._engine.pin(memory)
        return memory

    def captured_bytes(self) -> int:
        """Return how many bytes, from the first on, are filled in the own replica, or read."""
        with self._changed:
            return self._captured_bytes

    def stop_yielding_to_training(self) -> None:
        """Nothing to do: it does not yield."""

    def wait_captured(self) -> int:
        """Return when the own replica is whole: since when, in nanoseconds of CLOCK_MONOTONIC.

        Raises:
            RuntimeError: a copy failed, or the state turned out to be of no use.
        """
        self.wait_until(lambda: self._live is None)
        return self._captured_ns

    def follow_training(self, work: Any) -> None:
        """Nothing to do: what is sent is the processor's."""

    def post(
        self,
        number: int,
        sends: Sequence[Send],
        receives: Sequence[Receive],
        arrived: Arrived,
        after: Sequence[Transfer],
    ) -> Direct:
        """Start the round once what it sends is captured; see `Device.post`.

        Raises:
            RuntimeError: a copy failed.
        """
        del after  # there are no sub-buffers
        end = max((send.end for send in sends), default=0)
        self.wait_until(lambda: self._captured_bytes >= end)
        own = None if self._pieces.is_held else self._own
        return post_direct(self._post, number, (sends, receives), arrived, own, self._pieces)

    def _run(self) -> None:
        while self._has_next():
            self._fill()
            self._state_free()
            with self._changed:
                self._live = None
                self._changed.notify_all()

    def _has_next(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._live is not None or self._closing)
            return self._live is not None

    def _fill(self) -> None:
        live = self._live
        assert live is not None, "there is something to capture"
        # The next piece is queued before this one is waited for: the engine is never idle.
        queued: deque[tuple[int, int, Callable[[], Span]]] = deque()
        for start in range(0, self._own.numel(), self._piece_bytes):
            target = self._own[start : start + self._piece_bytes]
            wait = self._engine.begin(live.copies(start, target))
            queued.append((start, target.numel(), wait))
            if len(queued) == _QUEUED:
                self._finish(*queued.popleft())
        while queued:
            self._finish(*queued.popleft())

    def _finish(self, start: int, size_bytes: int, wait: Callable[[], Span]) -> None:
        self._own_copied(start, size_bytes, wait())
