"""Checkpoints of state that lies in an accelerator's memory: sub-buffers, and one copy engine.

A chunk is received into a sub-buffer beside the live state and copied to CPU memory from there
(Gemini, sec. 5.2): while one sub-buffer is copied, others receive. The same engine copies the own
replica, in pieces, while training communicates, when no chunk arrives; once the last chunk was sent
it need not wait any more. Chunks go before pieces of the own replica.

A round takes over the sub-buffers of earlier ones, which the caller names: how it waits for them
is the accelerator's, on a GPU by a stream that waits and no thread. So who posts is not held up.

This is everything but the accelerator itself, so that what runs on a GPU
(`castor_runtime.trainer.cuda_device`) is what runs, and is tested, beside a stand-in for one. Two
threads: one sees what arrives, the other what is copied, and drives the copy of the own replica.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from castor_policy.chunk_schedule import Link
from castor_runtime.state.sections import Section
from castor_runtime.trainer.copy_engine import CopyEngine, Interval, Span
from castor_runtime.trainer.device import Arrived, Receive, Send, Transfer
from castor_runtime.trainer.engine_device import EngineDevice
from castor_runtime.trainer.idle_spans import Gate
from castor_runtime.trainer.staging import BufferPool, Copy, LiveBytes


@dataclass(frozen=True, slots=True)
class Crossing:
    """A round as the accelerator does it.

    Attributes:
        arrived: blocks until all was sent and received; says from when to when it was under way.
        landed: called after that; blocks until what came lies in CPU memory, and says from when to
            when each of the copies was made.
        make_way: has rounds that this thread posts next come after that; it is given what blocks
            the thread until then, and may do without.
    """

    arrived: Callable[[], Span]
    landed: Callable[[], Sequence[Span]]
    make_way: Callable[[Callable[[], None]], None]


class Accelerator(CopyEngine, Protocol):
    """What differs between a GPU and its stand-in."""

    launches_in_order: bool
    """See `castor_runtime.trainer.device.Device.launches_in_order`."""

    @property
    def copy_link(self) -> Link | None:
        """What the copy engine takes for a copy to CPU memory."""
        ...

    def allocate(self, size_bytes: int) -> torch.Tensor:
        """Return device memory, flat, uint8, that nothing asked for earlier still uses."""
        ...

    def exchange(
        self,
        number: int,
        gathers: Sequence[Copy],
        outgoing: Sequence[tuple[int, torch.Tensor]],
        incoming: Sequence[tuple[int, torch.Tensor]],
        landings: Sequence[Copy],
    ) -> Crossing:
        """Begin a round: copy within device memory, send and receive by rank, copy out of it.

        Args:
            number: of the round.
            gathers: the copies before, within device memory.
            outgoing: what is sent, by rank.
            incoming: what is received, by rank.
            landings: the copies of that to CPU memory.
        """
        ...

    def follow_training(self, work: Any) -> None:
        """See `castor_runtime.trainer.device.Device.follow_training`."""
        ...


class _Round:
    """A round under way; a `Transfer`."""

    def __init__(
        self,
        device: StagedDevice,
        number: int,
        sent: list[tuple[torch.Tensor, int]],
        received: list[tuple[torch.Tensor, int]],
        crossing: Crossing,
        arrived: Arrived,
    ) -> None:
        self.number = number
        self.sent = sent
        """Sub-buffers that it holds to send from, and how much of each."""
        self.received = received
        """Likewise those that it receives into."""
        self.sizes_bytes = [size for _, size in received]
        self.crossing = crossing
        self.arrived = arrived
        self.has_arrived = False
        self.is_done = False
        self._device = device

    def wait_arrived(self) -> None:
        self._device.wait_until(lambda: self.has_arrived)

    def wait(self) -> None:
        self._device.wait_until(lambda: self.is_done)


class StagedDevice(EngineDevice):
    """The `Device` of state in an accelerator's memory; see the module's head.

    How many rounds are under way is for the caller to bound: each takes a sub-buffer for every
    piece that it receives, and as much for what it sends.

    Args:
        accelerator: what copies and communicates.
        gate: knows when training communicates.
        sub_buffer_bytes: R/p, the size of the pieces in which the own replica is copied.
    """

    def __init__(self, accelerator: Accelerator, gate: Gate, sub_buffer_bytes: int) -> None:
        super().__init__(accelerator, "a transfer failed", sub_buffer_bytes)
        self.copy_link = accelerator.copy_link
        self.launches_in_order = accelerator.launches_in_order
        self._accelerator = accelerator
        self._gate = gate
        self._sending = BufferPool(accelerator.allocate, sub_buffer_bytes)
        self._receiving = BufferPool(accelerator.allocate, sub_buffer_bytes)
        self._posted: deque[_Round] = deque()
        self._arrivals: deque[_Round] = deque()
        self._live = LiveBytes((), (), 0)
        self._readable_bytes = 0
        self._hurries = False
        gate.listen(self._training_changed)
        self._start({"castor-arrivals": self._see_arrivals, "castor-copy": self._drive_copies})

    @property
    def peak_buffer_bytes(self) -> int:
        """The most that received chunks have taken of device memory at once."""
        return self._receiving.peak_bytes

    def capture(
        self,
        sections: Sequence[Section],
        live: Sequence[torch.Tensor | None],
        own: torch.Tensor,
        state_free: Callable[[], None],
    ) -> None:
        """Begin to copy `live` into `own`; the part before must be whole."""
        self._live = LiveBytes((), (), 0)  # gives up what was rearranged for the moment before
        with self._accelerator.preparing():
            read = LiveBytes(sections, live, own.numel())  # copies what does not lie in one piece
        with self._changed:
            self._live = read
            self._own = own
            self._state_free = state_free
            self._captured_bytes = self._readable_bytes = 0
            self._hurries = False
            self._intervals = []
            self._changed.notify_all()

    def hold_live(
        self, sections: Sequence[Section], live: Sequence[torch.Tensor | None], size_bytes: int
    ) -> None:
        """See `Device.hold_live`."""
        self._live = LiveBytes((), (), 0)
        with self._accelerator.preparing():
            read = LiveBytes(sections, live, size_bytes)
        with self._changed:
            self._live = read
            self._own = torch.empty(0, dtype=torch.uint8)
            self._state_free = lambda: None
            self._captured_bytes = 0
            self._readable_bytes = size_bytes
            self._intervals = []

    def read(self, start: int, target: torch.Tensor) -> None:
        """See `Device.read`."""
        self._copy(self._live.copies(start, target))

    def captured_bytes(self) -> int:
        """Return how many bytes, from the first on, are filled in the own replica, or read."""
        with self._changed:
            return self._readable_bytes or self._captured_bytes

    def stop_yielding_to_training(self) -> None:
        """Copy the own replica whether or not training communicates."""
        with self._changed:
            self._hurries = True
            self._changed.notify_all()

    def wait_captured(self) -> int:
        """Return when the own replica is whole: since when, in nanoseconds of CLOCK_MONOTONIC.

        All was sent by then, so the live state is free.

        Raises:
            RuntimeError: a copy failed.
        """
        self.wait_until(lambda: self._captured_bytes == self._own.numel())
        self._state_free()
        return self._captured_ns

    def follow_training(self, work: Any) -> None:
        """See `Device.follow_training`."""
        self._accelerator.follow_training(work)

    def post(
        self,
        number: int,
        sends: Sequence[Send],
        receives: Sequence[Receive],
        arrived: Arrived,
        after: Sequence[Transfer],
    ) -> _Round:
        """Gather the pieces to send, and start to exchange; see `Device.post`."""
        for one in after:
            assert isinstance(one, _Round), "it was posted here"
            one.crossing.make_way(one.wait)
            self._give_back(one)
        gathers: list[Copy] = []
        sent, outgoing = [], []
        for send in sends:
            size = send.end - send.start
            buffer = self._sending.take(size)
            sent.append((buffer, size))
            gathers += self._live.copies(send.start, buffer[:size])
            outgoing.append((send.rank, buffer[:size]))
        received, incoming, landings = [], [], []
        for receive in receives:
            size = receive.target.numel()
            buffer = self._receiving.take(size)
            received.append((buffer, size))
            incoming.append((receive.rank, buffer[:size]))
            landings.append((buffer[:size], receive.target))
        crossing = self._accelerator.exchange(number, gathers, outgoing, incoming, landings)
        started = _Round(self, number, sent, received, crossing, arrived)
        with self._changed:
            self._posted.append(started)
            self._changed.notify_all()
        return started

    def _training_changed(self) -> None:
        if self._captured_bytes < self._own.numel():
            with self._changed:
                self._changed.notify_all()

    def _see_arrivals(self) -> None:
        """Wait for round after round; what arrived is the copy engine's."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._posted or self._closing)
                if not self._posted:
                    return
                current = self._posted.popleft()
            began_ns, ended_ns = current.crossing.arrived()
            self._give_back(current, received=False)
            current.arrived(began_ns, ended_ns)  # not under the lock: it takes others
            with self._changed:
                self._note(
                    "receive", current.number, (began_ns, ended_ns), sum(current.sizes_bytes)
                )
                current.has_arrived = True
                if current.sizes_bytes:
                    self._arrivals.append(current)
                else:
                    current.is_done = True
                self._changed.notify_all()

    def _drive_copies(self) -> None:
        """Drive the copy engine: chunks that have arrived, else a part of the own replica."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._arrivals or self._may_copy_own() or self._closing
                )
                if self._closing and not self._arrivals:
                    return
                current = self._arrivals.popleft() if self._arrivals else None
            if current is None:
                self._copy_own_part()
            else:
                self._see_landing(current)

    def _may_copy_own(self) -> bool:
        left = self._captured_bytes < self._own.numel()
        return left and (self._hurries or self._gate.in_traffic)

    def _see_landing(self, current: _Round) -> None:
        spans = current.crossing.landed()
        self._give_back(current)
        with self._changed:
            for span, size in zip(spans, current.sizes_bytes, strict=True):
                self._note("copy", current.number, span, size)
            current.is_done = True
            self._changed.notify_all()

    def _give_back(self, current: _Round, *, received: bool = True) -> None:
        """Take back the sub-buffers that a round still holds: all, or those it sends from."""
        with self._changed:
            sent, current.sent = current.sent, []
            came: list[tuple[torch.Tensor, int]] = []
            if received:
                came, current.received = current.received, []
        for buffer, size in sent:
            self._sending.give_back(buffer, size)
        for buffer, size in came:
            self._receiving.give_back(buffer, size)

    def _copy_own_part(self) -> None:
        start = self._captured_bytes
        target = self._own[start : start + self._piece_bytes]
        span = self._copy(self._live.copies(start, target))
        self._own_copied(start, target.numel(), span)

    def _note(self, kind: str, number: int, span: Span, size_bytes: int) -> None:
        self._intervals.append(Interval(kind, number, *span, size_bytes))
