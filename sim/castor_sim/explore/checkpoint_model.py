"""Checkpoint memory and training state as models: what is stored is what the digests see.

A state (see `truth`) that is torn, mixed, of another rank or of another iteration is never taken
for the right one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from castor_policy import checkpoint_memory
from castor_policy.checkpoint_memory import BufferHeader, BufferState

CHUNKS = 2
"""A part travels in so many chunks: enough for it to be torn."""

Chunk: TypeAlias = tuple[int, int]
"""(state that it was copied from, its place in the part); its digest is itself."""

_FLIPPED = -1


def part_of(state: int) -> list[Chunk]:
    """Return the chunks of a part that holds `state` and nothing else."""
    return [(state, place) for place in range(CHUNKS)]


def flipped(chunk: Chunk) -> Chunk:
    """Return a chunk with a broken byte."""
    state, place = chunk
    return state ^ _FLIPPED, place


class Replica:
    """One rank's part on one machine: its buffers, each with a header and a table of digests.

    Args:
        buffers: how many.

    Attributes:
        headers: of the buffers.
        given_up: what generations before this one wrote here was given up: another agent was given
            the machine's place, and training went on.
    """

    __slots__ = ("_chunks", "_digests", "given_up", "headers")

    def __init__(self, buffers: int) -> None:
        self.given_up = 0
        self.headers = [BufferHeader(BufferState.EMPTY) for _ in range(buffers)]
        self._chunks: list[list[Chunk]] = [[] for _ in range(buffers)]
        self._digests: list[list[Chunk]] = [[] for _ in range(buffers)]

    def begin(
        self,
        iteration: int,
        generation: int,
        agreed: int | None,
        *,
        beside_fetch: bool = False,
    ) -> int:
        """Take a buffer to write `iteration` to and return its index; header first."""
        index = checkpoint_memory.buffer_to_write(
            self.headers, agreed, iteration, beside_fetch=beside_fetch
        )
        self.headers[index] = BufferHeader(BufferState.WRITING, iteration, generation)
        self._chunks[index], self._digests[index] = [], []
        return index

    def write(self, index: int, chunk: Chunk) -> None:
        """Add a chunk."""
        self._chunks[index].append(chunk)

    def commit(self, index: int, digests: Sequence[Chunk]) -> bool:
        """Compare digests and complete the buffer, header last; False if they differ."""
        if list(digests) != self._chunks[index]:
            return False
        self._digests[index] = list(digests)
        header = self.headers[index]
        self.headers[index] = BufferHeader(
            BufferState.COMPLETE, header.iteration, header.generation
        )
        return True

    def offered(self) -> frozenset[int]:
        """Return the iterations that may be offered, as the policy says."""
        return checkpoint_memory.offered(self.headers)

    def find(self, iteration: int) -> int | None:
        """Return the index of the complete buffer of `iteration`; None if there is none."""
        for index, header in enumerate(self.headers):
            if header.state is BufferState.COMPLETE and header.iteration == iteration:
                return index
        return None

    def is_intact(self, index: int) -> bool:
        """Read a buffer against its digests."""
        return len(self._chunks[index]) == CHUNKS and self._chunks[index] == self._digests[index]

    def chunks(self, index: int) -> list[Chunk]:
        """Return what a buffer holds."""
        return list(self._chunks[index])

    def digests(self, index: int) -> list[Chunk]:
        """Return a complete buffer's table of digests."""
        return list(self._digests[index])

    def read_through(self) -> None:
        """Read every complete buffer against its digests and mark what does not match."""
        for index, header in enumerate(self.headers):
            if header.state is BufferState.COMPLETE and not self.is_intact(index):
                self.mark_corrupt(index)

    def mark_corrupt(self, index: int) -> None:
        """Take a buffer out of what may be offered."""
        iteration = self.headers[index].iteration
        self.headers[index] = BufferHeader(BufferState.CORRUPT, iteration)

    def keep_only(self, iteration: int | None) -> None:
        """Invalidate every buffer of another iteration; None: of any."""
        for index, header in enumerate(self.headers):
            if header.state is BufferState.EMPTY:
                continue
            if header.state is not BufferState.COMPLETE or header.iteration != iteration:
                self.headers[index] = BufferHeader(BufferState.EMPTY)

    def flip(self) -> int | None:
        """Flip a byte in the newest complete buffer; return its iteration, None without one."""
        complete = [
            (header.iteration, index)
            for index, header in enumerate(self.headers)
            if header.state is BufferState.COMPLETE
        ]
        if not complete:
            return None
        iteration, index = max(complete)
        self._chunks[index][0] = flipped(self._chunks[index][0])
        return iteration


Memory: TypeAlias = dict[int, Replica]
"""The replicas that one machine holds, by rank."""


def newest_generation(memory: Memory) -> int:
    """Return the newest generation that completed a buffer on a machine; 0 if none did."""
    found = (checkpoint_memory.newest_generation(replica.headers) for replica in memory.values())
    return max(found, default=0)
