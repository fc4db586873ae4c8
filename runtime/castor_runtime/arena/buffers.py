"""A buffer that is being written, and a complete one that is read. `Replica` makes both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from castor_policy.checkpoint_memory import BufferHeader
from castor_runtime.arena.digests import chunk_digests
from castor_runtime.arena.layout import BufferRecord
from castor_runtime.arena.mapped_part import MappedPart


class Writing:
    """A buffer taken to be written; `commit` makes it complete, `abandon` gives it up.

    Attributes:
        buffer: its index.
        header: what its header says: WRITING, iteration, generation.
        data: the data, writable in any order. Release no view of it later than the replica.
    """

    def __init__(self, mapped: MappedPart, buffer: int, header: BufferHeader) -> None:
        self.buffer = buffer
        self.header = header
        self.data = mapped.data(buffer)
        self._mapped = mapped
        self._ended = False

    @property
    def iteration(self) -> int:
        """What is written."""
        return self.header.iteration

    @property
    def generation(self) -> int:
        """The attempt that writes it."""
        return self.header.generation

    @property
    def rank(self) -> int:
        """Whose part it is."""
        return self._mapped.rank

    @property
    def chunk_bytes(self) -> int:
        """Size of a chunk; the last may be shorter."""
        return self._mapped.chunk_bytes

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return self._mapped.chunks

    @property
    def meta_bytes(self) -> int:
        """Capacity for metadata, as it is now."""
        return self._mapped.meta_bytes

    def make_room(self, meta_bytes: int) -> None:
        """See to it that metadata of that size fit; see `MappedPart.make_room`."""
        self._mapped.make_room(meta_bytes)

    def chunk(self, index: int) -> memoryview:
        """Return the data of one chunk.

        Raises:
            ValueError: there is no such chunk.
        """
        start, end = self._mapped.part.chunk_span(index)
        return self.data[start:end]

    def commit(
        self, meta: bytes, digests: Sequence[int] | None = None, *, workers: int = 1
    ) -> None:
        """Make the buffer complete: digests and metadata, then the header.

        Args:
            meta: the metadata.
            digests: one a chunk, as `chunk_digest` gives them; None: they are computed here.
            workers: threads that compute them.

        Raises:
            ValueError: there is no room for the metadata, the digests are not one a chunk,
                or the writing has ended already.
            WritingLostError: somebody else has taken the buffer; nothing is committed.
        """
        if self._ended:
            raise ValueError(f"the writing of iteration {self.iteration} has ended; begin anew")
        if len(meta) > self.meta_bytes:
            raise ValueError(
                f"{len(meta)} bytes of metadata do not fit into {self.meta_bytes}; "
                "call make_room first"
            )
        if digests is None:
            digests = chunk_digests(self.data, self._mapped.part, workers)
        if len(digests) != self.chunks:
            raise ValueError(f"{len(digests)} digests for {self.chunks} chunks; give one a chunk")
        self._mapped.commit(self.buffer, self.header, meta, digests)
        self._ended = True

    def abandon(self) -> None:
        """Give the buffer up, half-written; it counts as empty. Nothing after a commit."""
        if not self._ended:
            self._ended = True
            self._mapped.abandon(self.buffer, self.header)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A complete buffer, seen without a copy.

    Attributes:
        iteration: what it holds.
        generation: the attempt that wrote it.
        rank: whose part it is.
        data: the live buffer, for reading only. It is not write-protected because
            `torch.frombuffer` warns of memory that is.
        meta: the metadata.
        digests: one a chunk.
        chunk_bytes: size of a chunk; the last may be shorter.
        fingerprint: what the checkpoint is of.
    """

    iteration: int
    generation: int
    rank: int
    data: memoryview
    meta: bytes
    digests: tuple[int, ...]
    chunk_bytes: int
    fingerprint: bytes
    _mapped: MappedPart = field(repr=False)
    _buffer: int = field(repr=False)
    _record: BufferRecord = field(repr=False)

    def chunk_span(self, chunk: int) -> tuple[int, int]:
        """See `PartLayout.chunk_span`."""
        return self._mapped.part.chunk_span(chunk)

    def is_current(self) -> bool:
        """Say whether the buffer is still the same complete one: ask after reading the data."""
        return self._mapped.record(self._buffer) == self._record
