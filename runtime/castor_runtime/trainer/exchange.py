"""The rounds of a checkpoint: pieces go to the holders, and those of the sources arrive.

The k-th piece of every rank travels in round k, which is launched when its idle span has begun
(`castor_runtime.trainer.launches`). What has arrived in a replica's buffer is digested chunk by
chunk as it becomes whole. How many rounds may be under way is the scheme's: see
`castor_policy.in_flight`. No rank waits for another in a circle: the one whose next round has the
lowest number has only rounds under way that all others have posted.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from castor_runtime.arena import Writing, chunk_digest
from castor_runtime.trainer.agent_link import TrainerSettings
from castor_runtime.trainer.device import Device, Receive, Send, Transfer
from castor_runtime.trainer.idle_spans import Gate
from castor_runtime.trainer.launches import Launches
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
    """What this rank does in a round.

    Attributes:
        number: the same on all ranks, who may have nothing to do in some.
        span: releases it, on all ranks alike.
        sends: at most one, to a holder.
        arriving: what is received, by the rank whose part it is of.
        room_from: rounds before that one, by their index, have given up their sub-buffers.
    """

    number: int
    span: int
    sends: Sequence[Send]
    arriving: Mapping[int, Piece]
    room_from: int


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
        gate: knows whether training communicates any more.
        launches: says when each round is launched, and in which thread.
        sizes_bytes: of all ranks' parts.
        transfer_began: called when a round begins to move bytes.
        transfer_ended: called when it has ended, in any thread; as often as `transfer_began`, but
            after an error.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        device: Device,
        gate: Gate,
        launches: Launches,
        sizes_bytes: Sequence[int],
        transfer_began: Callable[[], None] = lambda: None,
        transfer_ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._device = device
        self._gate = gate
        self._launches = launches
        self._sizes_bytes = frozenset(sizes_bytes)
        self._transfer_began = transfer_began
        self._transfer_ended = transfer_ended
        self._rounds: Sequence[_Round] = ()
        self._parts: Mapping[int, Part] = {}
        self._transfers: list[Transfer] = []
        self._finished = 0
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
        self._network = _NetworkTime()
        self._landed_ns = began_ns = time.monotonic_ns()
        self._parts, self._transfers, self._finished = parts, [], 0
        self._rounds = self._plan(own, traffic)
        self._launches.begin([one.span for one in self._rounds], self._launch)
        for index, one in enumerate(self._rounds):
            self._finish_before(one.room_from)
            if not self._launches.is_due(index):
                self._wait_arrived()  # there is nothing else to do, and this is when to see it
            self._launches.wait(index)
            if self._gate.is_open and traffic.scheme != "blocking":
                # Training communicates no more in this iteration. ("blocking" sends before
                # training: there the own copy follows the chunks.)
                self._device.stop_yielding_to_training()
            own.digest_up_to(self._device.captured_bytes(), at_most=1)
        self._wait_arrived()
        self._device.stop_yielding_to_training()
        self._finish_before(len(self._rounds))
        captured_ns = self._device.wait_captured()
        return Exchanged(
            sum(send.end - send.start for one in self._rounds for send in one.sends),
            self._network.seconds,
            (self._landed_ns - began_ns) / 1e9,
            max(0, captured_ns - began_ns) / 1e9,
        )

    def _plan(self, own: Digested, traffic: Traffic) -> list[_Round]:
        """Return what this rank does in which round."""
        mine = traffic.pieces(own.size_bytes)
        holders = self._settings.holders()
        theirs = {
            rank: (replica, traffic.pieces(self._parts[rank].size_bytes))
            for rank, replica in self._settings.sources()
        }
        rounds: list[_Round] = []
        room_from = 0
        for number, span in enumerate(traffic.round_spans(self._sizes_bytes)):
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
            room_from = _room_from(rounds, room_from, len(arriving), traffic.pieces_in_flight)
            rounds.append(_Round(number, span, sends, arriving, room_from))
        return rounds

    def _launch(self, index: int) -> None:
        """Launch a round; in the thread that `Launches` says."""
        one = self._rounds[index]
        gave_room = self._rounds[index - 1].room_from if index else 0
        receives = [
            Receive(rank, self._parts[rank].data[piece.start : piece.end])
            for rank, piece in one.arriving.items()
        ]
        self._transfer_began()
        after = self._transfers[gave_room : one.room_from]
        self._transfers.append(
            self._device.post(one.number, one.sends, receives, self._arrived, after)
        )

    def _arrived(self, began_ns: int, ended_ns: int) -> None:
        self._network.add(began_ns, ended_ns)
        self._transfer_ended()

    def _wait_arrived(self) -> None:
        in_place = self._device.copy_link is None
        for index in range(self._finished, len(self._transfers)):
            self._transfers[index].wait_arrived()
            if in_place:  # while what follows is still under way
                self._finish_before(index + 1)

    def _finish_before(self, index: int) -> None:
        """Wait until what came in rounds before that one lies in CPU memory, and digest it."""
        while self._finished < index:
            self._transfers[self._finished].wait()
            self._landed_ns = time.monotonic_ns()
            for rank, piece in self._rounds[self._finished].arriving.items():
                self._parts[rank].digest_up_to(piece.end)
            self._finished += 1


def _room_from(rounds: Sequence[_Round], room_from: int, arriving: int, limit: int | None) -> int:
    """Return which rounds must have given up sub-buffers before one more: those before that index.

    Args:
        rounds: before it.
        room_from: of the last of them.
        arriving: pieces that come in the new one.
        limit: sub-buffers that there are; None: any number. One round may always be under way.
    """
    if limit is None:
        return room_from
    taken = sum(max(1, len(one.arriving)) for one in rounds[room_from:])
    while room_from < len(rounds) and taken + max(1, arriving) > limit:
        taken -= max(1, len(rounds[room_from].arriving))
        room_from += 1
    return room_from
