"""The rounds of a checkpoint: pieces go to the holders, and those of the sources arrive.

The k-th piece of every rank travels in round k, once the gate has let its idle span begin. What has
arrived in a replica's buffer is digested chunk by chunk as it becomes whole. How many rounds may be
under way is the scheme's: see `castor_policy.in_flight`. No rank waits for another in a circle:
the one whose next round has the lowest number has only rounds under way that all others have
posted.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from castor_runtime.arena import Writing, chunk_digest
from castor_runtime.trainer.agent_link import TrainerSettings
from castor_runtime.trainer.device import Device, Receive, Send, Transfer
from castor_runtime.trainer.idle_spans import Gate
from castor_runtime.trainer.traffic import Piece, Traffic


class Digested(ABC):
    """A part whose chunks are digested as they become whole.

    Args:
        size_bytes: of the part.
        chunk_bytes: of a chunk; the last may be shorter.

    Attributes:
        size_bytes: of the part.
        digests: of the chunks that were digested so far, in their order.
    """

    def __init__(self, size_bytes: int, chunk_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.digests: list[int] = []
        self._chunk_bytes = chunk_bytes

    @abstractmethod
    def end(self, meta: bytes | None) -> None:
        """Make the buffer that it fills, if any, complete with that metadata; None: give it up."""

    @abstractmethod
    def digest(self, start: int, end: int) -> int:
        """Return the digest of the chunk of bytes [start, end)."""

    def digest_up_to(self, end: int, *, at_most: int | None = None) -> None:
        """Digest the chunks that end at or before `end`, or the first `at_most` of them."""
        while (start := len(self.digests) * self._chunk_bytes) < self.size_bytes and at_most != 0:
            chunk_end = min(start + self._chunk_bytes, self.size_bytes)
            if chunk_end > end:
                return
            self.digests.append(self.digest(start, chunk_end))
            at_most = None if at_most is None else at_most - 1


class Part(Digested):
    """A buffer that is being filled in byte order.

    Args:
        writing: the buffer.
    """

    def __init__(self, writing: Writing) -> None:
        self.writing = writing
        self.data = torch.frombuffer(writing.data, dtype=torch.uint8)
        super().__init__(self.data.numel(), writing.chunk_bytes)

    def end(self, meta: bytes | None) -> None:
        """See `Digested.end`; nothing may be missing of what is made complete."""
        if meta is None:
            self.writing.abandon()
        else:
            self.writing.commit(meta, self.digests)

    def digest(self, start: int, end: int) -> int:
        """See `Digested.digest`."""
        with self.writing.data[start:end] as chunk:
            return chunk_digest(chunk)


@dataclass(frozen=True, slots=True)
class Exchanged:
    """What one exchange did. Seconds are from its begin, but for `network_s`.

    Attributes:
        sent_bytes: to other machines.
        network_s: time in which at least one round was on the network: posted here, and not yet
            arrived. Waits for a span or for a sub-buffer are left out; that for a peer that posts
            later than this rank can not be told apart.
        sent_s: until the last chunk lay in CPU memory, here.
        captured_s: until the own replica was whole; 0 if it was before.
    """

    sent_bytes: int
    network_s: float
    sent_s: float
    captured_s: float


@dataclass(frozen=True, slots=True)
class _Round:
    transfer: Transfer
    ends: Mapping[int, int]


class _NetworkTime:
    """The length of the union of intervals that end in their order."""

    def __init__(self) -> None:
        self._total_ns = 0
        self._last_ns = 0

    def add(self, began_ns: int, ended_ns: int) -> None:
        self._total_ns += max(0, ended_ns - max(began_ns, self._last_ns))
        self._last_ns = max(self._last_ns, ended_ns)

    @property
    def seconds(self) -> float:
        return self._total_ns / 1e9


class Exchange:
    """Does the rounds of one rank, checkpoint after checkpoint.

    Args:
        settings: of the trainer.
        device: how to exchange.
        gate: releases pieces.
        transfer_began: called when a round begins to move bytes.
        transfer_ended: called when it has ended, in any thread; as often as `transfer_began`, but
            after an error.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        device: Device,
        gate: Gate,
        transfer_began: Callable[[], None] = lambda: None,
        transfer_ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._device = device
        self._gate = gate
        self._transfer_began = transfer_began
        self._transfer_ended = transfer_ended
        self._under_way: deque[_Round] = deque()
        self._network = _NetworkTime()
        self._landed_ns = 0

    def run(self, own: Digested, parts: Mapping[int, Part], traffic: Traffic) -> Exchanged:
        """Do all rounds of a checkpoint; on return all of it lies in CPU memory, here.

        The live state is free then, too.

        Args:
            own: the part that the device captures, or reads, and sends to `settings.holders()`.
            parts: filled with those of `settings.sources()`, by rank.
            traffic: what travels when.

        Raises:
            RuntimeError: a peer is gone, or the device failed.
        """
        self._under_way.clear()
        self._network = _NetworkTime()
        self._landed_ns = began_ns = time.monotonic_ns()
        mine = traffic.pieces(own.size_bytes)
        holders = self._settings.holders()
        theirs = {
            rank: (replica, traffic.pieces(parts[rank].size_bytes))
            for rank, replica in self._settings.sources()
        }
        limit = traffic.pieces_in_flight
        sent_bytes = 0
        for number in range(max([len(mine), *(len(pieces) for _, pieces in theirs.values())])):
            sends = [
                Send(holders[piece.replica], piece.start, piece.end)
                for piece in mine[number : number + 1]
            ]
            arriving = {
                rank: pieces[number]
                for rank, (replica, pieces) in theirs.items()
                if number < len(pieces) and pieces[number].replica == replica
            }
            if not sends and not arriving:
                continue
            pieces_now = (*mine[number : number + 1], *arriving.values())
            self._wait_for_span(max(piece.span for piece in pieces_now), traffic)
            self._make_room(max(1, len(arriving)), limit, parts)
            self._post(number, sends, arriving, parts)
            sent_bytes += sum(send.end - send.start for send in sends)
            own.digest_up_to(self._device.captured_bytes(), at_most=1)
        for under_way in self._under_way:
            under_way.transfer.wait_arrived()
        self._device.stop_yielding_to_training()
        while self._under_way:
            self._finish_oldest(parts)
        captured_ns = self._device.wait_captured()
        return Exchanged(
            sent_bytes,
            self._network.seconds,
            (self._landed_ns - began_ns) / 1e9,
            max(0, captured_ns - began_ns) / 1e9,
        )

    def _wait_for_span(self, span: int, traffic: Traffic) -> None:
        if not self._gate.has_begun(span):
            # There is nothing else to do, and this is when to see that they have arrived.
            for under_way in self._under_way:
                under_way.transfer.wait_arrived()
            self._gate.wait(span)
        if self._gate.is_open and traffic.scheme != "blocking":
            # Training communicates no more in this iteration. ("blocking" sends before training:
            # there the own copy follows the chunks.)
            self._device.stop_yielding_to_training()

    def _make_room(self, wanted: int, limit: int | None, parts: Mapping[int, Part]) -> None:
        """Finish rounds until there are sub-buffers for the next, or none is under way."""
        if limit is None:
            return
        taken = [max(1, len(under_way.ends)) for under_way in self._under_way]
        while taken and sum(taken) + wanted > limit:
            self._finish_oldest(parts)
            taken.pop(0)

    def _post(
        self,
        number: int,
        sends: Sequence[Send],
        arriving: Mapping[int, Piece],
        parts: Mapping[int, Part],
    ) -> None:
        receives = [
            Receive(rank, parts[rank].data[piece.start : piece.end])
            for rank, piece in arriving.items()
        ]
        self._transfer_began()
        transfer = self._device.post(number, sends, receives, self._arrived)
        self._under_way.append(
            _Round(transfer, {rank: piece.end for rank, piece in arriving.items()})
        )

    def _arrived(self, began_ns: int, ended_ns: int) -> None:
        self._network.add(began_ns, ended_ns)
        self._transfer_ended()

    def _finish_oldest(self, parts: Mapping[int, Part]) -> None:
        oldest = self._under_way.popleft()
        oldest.transfer.wait()
        self._landed_ns = time.monotonic_ns()
        for rank, end in oldest.ends.items():
            parts[rank].digest_up_to(end)
