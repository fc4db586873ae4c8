"""Checkpoint memory and training state as models: what is stored is what the digests see.

The state of a rank after iteration i is a hash chain over its iterations, so a state that is torn,
mixed, of another rank or of another iteration is never taken for the right one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeAlias

from castor_policy.checkpoint_memory import BufferHeader, BufferState

CHUNKS = 2
"""A part travels in so many chunks: enough for it to be torn."""

Chunk: TypeAlias = tuple[int, int]
"""(state that it was copied from, its place in the part); its digest is itself."""

ChooseBuffer: TypeAlias = Callable[[Sequence[BufferHeader], int | None], int]
Offered: TypeAlias = Callable[[Sequence[BufferHeader]], frozenset[int]]

_FLIPPED = -1


@lru_cache(maxsize=4096)
def state_after(rank: int, iteration: int) -> int:
    """Return the one right state of `rank` after `iteration`; 0 is the start."""
    if iteration == 0:
        return rank + 1
    return next_state(state_after(rank, iteration - 1), iteration)


def next_state(state: int, iteration: int) -> int:
    """Return what the update of `iteration` makes of a state."""
    return (state * 6364136223846793005 + iteration + 1442695040888963407) % 2**64


def part_of(state: int) -> list[Chunk]:
    """Return the chunks of a part that holds `state` and nothing else."""
    return [(state, place) for place in range(CHUNKS)]


class Replica:
    """One rank's part on one machine: two buffers, each with a header and a table of digests."""

    __slots__ = ("_chunks", "_digests", "headers")

    def __init__(self) -> None:
        self.headers = [BufferHeader(BufferState.EMPTY), BufferHeader(BufferState.EMPTY)]
        self._chunks: list[list[Chunk]] = [[], []]
        self._digests: list[list[Chunk]] = [[], []]

    def begin(
        self, iteration: int, generation: int, agreed: int | None, choose: ChooseBuffer
    ) -> int:
        """Take a buffer to write `iteration` to and return its index; header first."""
        index = choose(self.headers, agreed)
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
        state, place = self._chunks[index][0]
        self._chunks[index][0] = (state ^ _FLIPPED, place)
        return iteration


Memory: TypeAlias = dict[int, Replica]
"""The replicas that one machine holds, by rank."""
