"""The segment of one held part as a process maps it: its headers, its data, and room for metadata.

One writer at a time; readers may look at any moment. See `castor_runtime.arena.layout`.
"""

from __future__ import annotations

import mmap
import os
import struct
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import xxhash

from castor_policy.checkpoint_memory import BufferHeader, BufferState
from castor_runtime.arena.errors import WritingLostError
from castor_runtime.arena.layout import (
    BufferRecord,
    MetaRoom,
    PartLayout,
    SegmentOwner,
    buffer_header_bytes,
    buffer_header_offset,
    pack_buffer,
    pack_room,
    pages,
    room_span,
    unpack_buffer,
    unpack_room,
)
from castor_runtime.arena.segments import grow_file, open_descriptor, write_at

# A reader may catch a header half written; the writer needs nanoseconds to finish it.
_READS_OF_A_HEADER = 100


class MappedPart:
    """A mapped segment.

    Attributes:
        name: of the segment in its folder.
        owner: job, run, agent and fingerprint that it belongs to.
        part: rank and sizes.
        ask_for_room: is called with this and a number of bytes when metadata outgrow their
            room, and returns when they fit or raises why they do not; None: they never will.
    """

    ask_for_room: Callable[[MappedPart, int], None] | None = None

    def __init__(
        self, path: Path, mapped: mmap.mmap, owner: SegmentOwner, part: PartLayout
    ) -> None:
        self.name = path.name
        self.owner = owner
        self.part = part
        self._path = path
        self._map = mapped
        self._view = memoryview(mapped)
        # For what grew: it is read and written, and never mapped.
        self._descriptor = open_descriptor(path)
        self._close_descriptor = weakref.finalize(self, os.close, self._descriptor)

    @property
    def rank(self) -> int:
        """The rank whose part it is."""
        return self.part.rank

    @property
    def data_bytes(self) -> int:
        """Size of the data of one buffer."""
        return self.part.data_bytes

    @property
    def meta_bytes(self) -> int:
        """Capacity for metadata of one buffer, as it is now."""
        return max(self.part.meta_bytes, self._room().capacity_bytes)

    @property
    def chunk_bytes(self) -> int:
        """Size of a chunk; the last may be shorter."""
        return self.part.chunk_bytes

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return self.part.chunks

    @property
    def fingerprint(self) -> bytes:
        """What the checkpoints are of."""
        return self.owner.fingerprint

    @property
    def memory_bytes(self) -> int:
        """Size of the segment, with what grew."""
        return os.fstat(self._descriptor).st_size

    @property
    def mapped(self) -> tuple[Path, mmap.mmap]:
        """The segment's file and this process's mapping of it, for `fault_in`."""
        return self._path, self._map

    def make_room(self, meta_bytes: int) -> None:
        """See to it that metadata of that size fit, by whoever may take memory here.

        Raises:
            ValueError: there is nobody who may.
            Exception: what `ask_for_room` raises.
        """
        if meta_bytes <= self.meta_bytes:
            return
        if self.ask_for_room is None:
            raise ValueError(
                f"{meta_bytes} bytes of metadata do not fit into the {self.meta_bytes} of "
                f"{self.name}, and nobody adds room to it"
            )
        self.ask_for_room(self, meta_bytes)

    def grow(self, capacity_bytes: int) -> None:
        """Add room for metadata, in each buffer. Contents stay, and readers need not know.

        Raises:
            OSError: there is not so much memory.
        """
        capacity_bytes = pages(capacity_bytes)
        room = MetaRoom(pages(self.memory_bytes), capacity_bytes)
        grow_file(self._descriptor, room.offset, self.part.buffers * capacity_bytes)
        self._view[room_span()] = pack_room(room)

    def close(self) -> None:
        """Give up the mapping; the segment stays. Views of it that live on keep it mapped."""
        self._close_descriptor()
        self._view.release()
        try:
            self._map.close()
        except BufferError:
            # A tensor or a snapshot still looks at it: it is unmapped with the last of them.
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def data(self, buffer: int) -> memoryview:
        """Return a buffer's data."""
        start = self.part.data_offset(buffer)
        return self._view[start : start + self.data_bytes]

    def record(self, buffer: int) -> BufferRecord:
        """Return what a buffer's header says; one whose own digest does not match is CORRUPT."""
        start = buffer_header_offset(buffer)
        for _ in range(_READS_OF_A_HEADER):
            packed = bytes(self._view[start : start + buffer_header_bytes()])
            record = unpack_buffer(buffer, packed)
            if record is not None:
                return record
        return BufferRecord(BufferHeader(BufferState.CORRUPT))

    def store(self, buffer: int, record: BufferRecord) -> None:
        """Write a buffer's header."""
        start = buffer_header_offset(buffer)
        packed = pack_buffer(buffer, record)
        self._view[start : start + len(packed)] = packed

    def _room(self) -> MetaRoom:
        return unpack_room(bytes(self._view[room_span()]))

    def _meta(self, buffer: int, record: BufferRecord) -> bytes:
        if record.meta_offset:
            return os.pread(self._descriptor, record.meta_bytes, record.meta_offset)
        start = self.part.record_offset(buffer) + self.part.table_bytes
        return bytes(self._view[start : start + record.meta_bytes])

    def sound_meta(self, buffer: int, record: BufferRecord) -> bytes | None:
        """Return the metadata; None where they or the digests are not what was committed."""
        room = self.memory_bytes - record.meta_offset if record.meta_offset else 0
        if record.meta_bytes > max(room, self.part.meta_bytes):
            return None
        meta = self._meta(buffer, record)
        start = self.part.record_offset(buffer)
        digest = xxhash.xxh3_64()
        with self._view[start : start + self.part.table_bytes] as table:
            digest.update(table)
        digest.update(meta)
        return meta if digest.intdigest() == record.record_digest else None

    def commit(
        self, buffer: int, header: BufferHeader, meta: bytes, digests: Sequence[int]
    ) -> None:
        """Make a buffer complete: digests and metadata, then the header.

        Args:
            buffer: its index.
            header: what it has had since it was taken to be written.
            meta: the metadata; there is room for them.
            digests: one a chunk.

        Raises:
            WritingLostError: somebody else has taken the buffer; nothing is committed.
        """
        if self.record(buffer).header != header:
            raise WritingLostError(
                f"{self.name}: buffer {buffer} was taken from the writer of iteration "
                f"{header.iteration}, generation {header.generation}"
            )
        table = struct.pack(f"<{self.chunks}Q", *digests)
        start = self.part.record_offset(buffer)
        self._view[start : start + len(table)] = table
        offset = 0
        if len(meta) <= self.part.meta_bytes:
            start += len(table)
            self._view[start : start + len(meta)] = meta
        else:
            offset = self._room().start(buffer)
            write_at(self._descriptor, meta, offset)
        complete = BufferHeader(BufferState.COMPLETE, header.iteration, header.generation)
        digest = xxhash.xxh3_64(table)
        digest.update(meta)
        self.store(buffer, BufferRecord(complete, len(meta), digest.intdigest(), offset))

    def abandon(self, buffer: int, header: BufferHeader) -> None:
        """Empty a buffer that was being written, unless somebody else has taken it."""
        if self.record(buffer).header == header:
            self.store(buffer, BufferRecord(BufferHeader(BufferState.EMPTY)))
