"""What the transport needs to know of checkpoint memory: `castor_runtime.arena` has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class ReadablePart(Protocol):
    """A complete checkpoint of one rank's part (the arena's `Snapshot`)."""

    @property
    def iteration(self) -> int:
        """The iteration that it holds."""
        ...

    @property
    def data(self) -> memoryview:
        """The data, without a copy."""
        ...

    @property
    def meta(self) -> bytes:
        """The metadata."""
        ...

    @property
    def digests(self) -> Sequence[int]:
        """xxh3_64 of each chunk of the data."""
        ...

    @property
    def chunk_bytes(self) -> int:
        """Size of a chunk; the last may be shorter."""
        ...

    @property
    def fingerprint(self) -> bytes:
        """What the checkpoint is of: job, topology, layout."""
        ...


class WritablePart(Protocol):
    """A buffer taken to be written (the arena's `Writing`)."""

    @property
    def data(self) -> memoryview:
        """The data, writable in any order."""
        ...

    @property
    def chunk_bytes(self) -> int:
        """Size of a chunk; the last may be shorter."""
        ...

    @property
    def meta_bytes(self) -> int:
        """Capacity for metadata, as it is now."""
        ...

    def make_room(self, meta_bytes: int) -> None:
        """See to it that metadata of that size fit; raise why they do not."""
        ...

    def commit(self, meta: bytes, digests: Sequence[int]) -> None:
        """Make the checkpoint complete."""
        ...


class PartSource(Protocol):
    """Where a server finds what it is asked for."""

    def open(self, rank: int, iteration: int) -> ReadablePart:
        """Return the complete checkpoint; called in the event loop's thread, so be quick.

        Raises:
            PartMissingError: it is not held, or not complete.
        """
        ...


def chunk_count(data_bytes: int, chunk_bytes: int) -> int:
    """Return how many chunks the data have."""
    return -(-data_bytes // chunk_bytes)


def chunk_size(index: int, data_bytes: int, chunk_bytes: int) -> int:
    """Return the size of chunk `index` in bytes."""
    return min(chunk_bytes, data_bytes - index * chunk_bytes)
