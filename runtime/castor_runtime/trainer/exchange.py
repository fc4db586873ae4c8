"""The rounds of a checkpoint: pieces go to the holders, and those of the sources arrive.

The k-th piece of every rank travels in round k, once the gate has let its idle span begin. What
arrives lies straight in a replica's buffer and is digested chunk by chunk as it becomes whole.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from castor_runtime.arena import Writing, chunk_digest
from castor_runtime.trainer.agent_link import TrainerSettings
from castor_runtime.trainer.device import Device, Receive, Send, Transfer
from castor_runtime.trainer.idle_spans import Gate
from castor_runtime.trainer.traffic import PARTS, Piece, Traffic

_IN_FLIGHT = PARTS


class Part:
    """A buffer that is being filled in byte order; digests its chunks as they become whole.

    Args:
        writing: the buffer.
    """

    def __init__(self, writing: Writing) -> None:
        self.writing = writing
        self.data = torch.frombuffer(writing.data, dtype=torch.uint8)
        self.digests: list[int] = []

    def digest_up_to(self, end: int, *, at_most: int | None = None) -> None:
        """Digest the chunks that end at or before `end`, or the first `at_most` of them."""
        size, total = self.writing.chunk_bytes, self.data.numel()
        while len(self.digests) < self.writing.chunks and at_most != 0:
            index = len(self.digests)
            if min((index + 1) * size, total) > end:
                return
            with self.writing.chunk(index) as chunk:
                self.digests.append(chunk_digest(chunk))
            at_most = None if at_most is None else at_most - 1


@dataclass(frozen=True, slots=True)
class Exchanged:
    """What one exchange did.

    Attributes:
        sent_bytes: to other machines.
        network_s: time in which at least one round was under way; waits for a span are left out.
        sent_s: from the exchange's begin until the last chunk lay in CPU memory.
    """

    sent_bytes: int
    network_s: float
    sent_s: float


@dataclass(frozen=True, slots=True)
class _Round:
    transfer: Transfer
    ends: Mapping[int, int]
    moves: bool


class Exchange:
    """Does the rounds of one rank, checkpoint after checkpoint.

    Args:
        settings: of the trainer.
        device: how to exchange.
        gate: releases pieces.
        transfer_began: called when a round begins to move bytes.
        transfer_ended: called when it has ended; as often as `transfer_began`, but after an error.
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
        self._network_s = 0.0
        self._moving_since = 0.0
        self._moving = 0

    def run(self, own: Part, parts: Mapping[int, Part], traffic: Traffic) -> Exchanged:
        """Do all rounds of a checkpoint; on return every piece lies in CPU memory, here and there.

        Args:
            own: the part that was captured, whose pieces go to `settings.holders()`.
            parts: filled with those of `settings.sources()`, by rank.
            traffic: what travels when.

        Raises:
            RuntimeError: a peer is gone, or the device failed.
        """
        began = time.monotonic()
        self._under_way.clear()
        self._network_s, self._moving = 0.0, 0
        mine = traffic.pieces(own.data.numel())
        holders = self._settings.holders()
        theirs = {
            rank: (replica, traffic.pieces(parts[rank].data.numel()))
            for rank, replica in self._settings.sources()
        }
        rounds = max([len(mine), *(len(pieces) for _, pieces in theirs.values())])
        sent_bytes = 0
        for number in range(rounds):
            sends = [
                Send(holders[piece.replica], piece.start, piece.end)
                for piece in mine[number : number + 1]
            ]
            arriving = {
                rank: pieces[number]
                for rank, (replica, pieces) in theirs.items()
                if number < len(pieces) and pieces[number].replica == replica
            }
            self._wait_for_span(mine[number : number + 1], arriving)
            if len(self._under_way) == _IN_FLIGHT:
                self._finish_oldest(parts)
            self._post(number, sends, arriving, parts)
            sent_bytes += sum(send.end - send.start for send in sends)
            own.digest_up_to(own.data.numel(), at_most=1)
        while self._under_way:
            self._finish_oldest(parts)
        return Exchanged(sent_bytes, self._network_s, time.monotonic() - began)

    def _wait_for_span(self, mine: Sequence[Piece], arriving: Mapping[int, Piece]) -> None:
        spans = [piece.span for piece in (*mine, *arriving.values())]
        if spans:
            self._gate.wait(max(spans))

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
        moves = bool(sends or receives)
        if moves:
            self._begin()
        transfer = self._device.post(number, sends, receives)
        ends = {rank: piece.end for rank, piece in arriving.items()}
        self._under_way.append(_Round(transfer, ends, moves))

    def _finish_oldest(self, parts: Mapping[int, Part]) -> None:
        oldest = self._under_way.popleft()
        oldest.transfer.wait()
        if oldest.moves:
            self._end()
        for rank, end in oldest.ends.items():
            parts[rank].digest_up_to(end)

    def _begin(self) -> None:
        self._transfer_began()
        if self._moving == 0:
            self._moving_since = time.monotonic()
        self._moving += 1

    def _end(self) -> None:
        self._transfer_ended()
        self._moving -= 1
        if self._moving == 0:
            self._network_s += time.monotonic() - self._moving_since
