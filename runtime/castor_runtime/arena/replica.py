"""One held part: two buffers in a segment that an agent and its trainers map at once.

One writer at a time; readers may look at any moment. See `castor_runtime.arena.layout`.
"""

from __future__ import annotations

import mmap
import os
import struct
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import xxhash

from castor_policy.checkpoint_memory import (
    BufferHeader,
    BufferState,
    buffer_to_write,
    is_of_run,
    offered,
)
from castor_runtime.arena.buffers import Snapshot, Writing
from castor_runtime.arena.digests import chunk_digests, differing
from castor_runtime.arena.errors import (
    DamagedPartError,
    ForeignCheckpointError,
    IterationMissingError,
    WritingLostError,
)
from castor_runtime.arena.layout import (
    BUFFERS,
    BufferRecord,
    MetaRoom,
    PartLayout,
    SegmentOwner,
    buffer_header_bytes,
    buffer_header_offset,
    pack_buffer,
    pack_fixed,
    pack_room,
    pages,
    room_span,
    unpack_buffer,
    unpack_room,
)
from castor_runtime.arena.segment_header import read_header
from castor_runtime.arena.segments import (
    SHARED_MEMORY,
    create_file,
    fault_in,
    grow_file,
    open_descriptor,
    open_file,
    segment_name,
    write_at,
)

# A reader may catch a header half written; the writer needs nanoseconds to finish it.
_READS_OF_A_HEADER = 100


class Replica:
    """A part held in shared memory. Make one by `create` or `open`.

    Attributes:
        name: of the segment in its folder.
        owner: job, run, agent and fingerprint that it belongs to.
        part: rank and sizes.
        ask_for_room: is called with this replica and a number of bytes when metadata outgrow their
            room, and returns when they fit or raises why they do not; None: they never will.
    """

    ask_for_room: Callable[[Replica, int], None] | None = None

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

    @classmethod
    def create(
        cls, name: str, owner: SegmentOwner, part: PartLayout, *, folder: Path = SHARED_MEMORY
    ) -> Replica:
        """Make a new segment with two empty buffers in place of one of that name.

        Raises:
            OSError: it cannot be made.
        """
        path = folder / name
        mapped = create_file(path, part.segment_bytes)
        replica = cls(path, mapped, owner, part)
        for buffer in range(BUFFERS):
            replica._store(buffer, BufferRecord(BufferHeader(BufferState.EMPTY)))
        fixed = pack_fixed(owner, part)
        replica._view[: len(fixed)] = fixed
        return replica

    @classmethod
    def open(
        cls,
        name: str,
        *,
        run: str | None = None,
        fingerprint: bytes | None = None,
        folder: Path = SHARED_MEMORY,
    ) -> Replica:
        """Map the segment `name`.

        Args:
            name: of the segment in `folder`.
            run: which run it has to be of; None: whichever it is of.
            fingerprint: what it has to be of; None: whatever it is of.
            folder: where the machine's shared memory is.

        Raises:
            ForeignCheckpointError: it is no segment of this layout version, is damaged in its
                fixed header or its length, or is of another run or fingerprint.
            OSError: it is not there.
        """
        path = folder / name
        owner, part = read_header(path)
        if run is not None and not is_of_run(owner.run, run):
            raise ForeignCheckpointError(
                f"{name} is of run {owner.run} of job {owner.job}, not of run {run}; remove it by "
                "`castor clean`"
            )
        if fingerprint is not None and owner.fingerprint != fingerprint:
            raise ForeignCheckpointError(
                f"{name} holds checkpoints of another job or topology: its fingerprint is "
                f"{owner.fingerprint.hex()}, not {fingerprint.hex()}; remove it or name the job "
                "otherwise"
            )
        found_bytes = path.stat().st_size
        if found_bytes < part.segment_bytes:
            raise ForeignCheckpointError(
                f"{name} is {found_bytes} bytes long where its header says "
                f"{part.segment_bytes}; remove it"
            )
        return cls(path, open_file(path, part.segment_bytes), owner, part)

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

    def headers(self) -> tuple[BufferHeader, ...]:
        """Return the buffers' headers; one whose own digest does not match counts as CORRUPT."""
        return tuple(self._record(buffer).header for buffer in range(BUFFERS))

    def offered(self) -> frozenset[int]:
        """Return the iterations that are complete here."""
        return offered(self.headers())

    def begin(self, iteration: int, generation: int, agreed: int | None) -> Writing:
        """Take a buffer to write `iteration` into; it counts as WRITING from here on.

        Args:
            iteration: what will be written.
            generation: the attempt that writes it.
            agreed: the newest iteration known to be complete on every rank, which is kept.

        Raises:
            ValueError: iteration or generation is negative.
        """
        header = BufferHeader(BufferState.WRITING, iteration, generation)
        buffer = buffer_to_write(self.headers(), agreed)
        self._store(buffer, BufferRecord(header))
        return Writing(self, buffer, header)

    def snapshot(self, iteration: int) -> Snapshot:
        """Return the complete buffer of `iteration`, without a copy, its record checked.

        The data are checked by `verify`, or chunk by chunk against the digests.

        Raises:
            IterationMissingError: no complete buffer holds it.
            DamagedPartError: its digests or metadata are damaged.
        """
        buffer, record = self._find(iteration)
        meta = self._sound_meta(buffer, record)
        if meta is None:
            raise DamagedPartError(
                f"{self.name}: the digests or metadata of iteration {iteration} are damaged"
            )
        start = self.part.record_offset(buffer)
        table = self._view[start : start + self.part.table_bytes]
        return Snapshot(
            iteration=iteration,
            generation=record.header.generation,
            rank=self.rank,
            data=self._data(buffer),
            meta=meta,
            digests=struct.unpack(f"<{self.chunks}Q", table),
            chunk_bytes=self.chunk_bytes,
            fingerprint=self.fingerprint,
            _replica=self,
            _buffer=buffer,
            _record=record,
        )

    def verify(self, iteration: int, workers: int = 1) -> list[int]:
        """Return the chunks of `iteration` that do not match their digests, ascending.

        All chunks, if the table of digests or the metadata is damaged: nothing vouches for them.

        Raises:
            IterationMissingError: no complete buffer holds it (a damaged header is none).
            ValueError: `workers` is less than 1.
        """
        try:
            snapshot = self.snapshot(iteration)
        except DamagedPartError:
            return list(range(self.chunks))
        return differing(chunk_digests(snapshot.data, self.part, workers), snapshot.digests)

    def mark_corrupt(self, iteration: int) -> None:
        """See to it that `iteration` is never offered again from here; nothing if it is not."""
        for buffer, header in enumerate(self.headers()):
            if header.state is BufferState.COMPLETE and header.iteration == iteration:
                corrupt = BufferHeader(BufferState.CORRUPT, iteration, header.generation)
                self._store(buffer, BufferRecord(corrupt))

    def keep_only(self, iteration: int | None) -> None:
        """Empty each complete or half-written buffer but the complete one of `iteration`."""
        for buffer, header in enumerate(self.headers()):
            kept = header.state is BufferState.COMPLETE and header.iteration == iteration
            if not kept and header.state in (BufferState.COMPLETE, BufferState.WRITING):
                self._store(buffer, BufferRecord(BufferHeader(BufferState.EMPTY)))

    def reassign(self, part: PartLayout) -> None:
        """Hold another rank's part in the same memory, which is empty afterwards.

        Memory that was faulted in stays so: a standby takes it before it knows whose place it
        will fill. Killed within it, the segment is found not to be what its name says.

        Raises:
            ValueError: the sizes differ.
            OSError: the segment cannot be renamed.
        """
        if not self.part.is_like(part):
            raise ValueError(f"{self.name} holds {self.part}; it cannot hold {part}")
        self.keep_only(None)
        part = replace(self.part, rank=part.rank)
        fixed = pack_fixed(self.owner, part)
        self._view[: len(fixed)] = fixed
        path = self._path.with_name(
            segment_name(self.owner.job, self.owner.run, self.owner.agent, part.rank)
        )
        self._path.rename(path)
        self._path, self.name, self.part = path, path.name, part

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
        """Add room for metadata: twice that size of memory. Contents stay; readers need not know.

        Raises:
            OSError: there is not so much memory.
        """
        capacity_bytes = pages(capacity_bytes)
        room = MetaRoom(pages(self.memory_bytes), capacity_bytes)
        grow_file(self._descriptor, room.offset, BUFFERS * capacity_bytes)
        self._view[room_span()] = pack_room(room)

    def touch(self, *, threads: int = 2) -> None:
        """Fault in every page for this process; contents stay.

        Raises:
            InputError: the memory ran out.
        """
        fault_in([self.mapped], threads=threads)

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

    def _data(self, buffer: int) -> memoryview:
        start = self.part.data_offset(buffer)
        return self._view[start : start + self.data_bytes]

    def _record(self, buffer: int) -> BufferRecord:
        start = buffer_header_offset(buffer)
        for _ in range(_READS_OF_A_HEADER):
            packed = bytes(self._view[start : start + buffer_header_bytes()])
            record = unpack_buffer(buffer, packed)
            if record is not None:
                return record
        return BufferRecord(BufferHeader(BufferState.CORRUPT))

    def _store(self, buffer: int, record: BufferRecord) -> None:
        start = buffer_header_offset(buffer)
        packed = pack_buffer(buffer, record)
        self._view[start : start + len(packed)] = packed

    def _find(self, iteration: int) -> tuple[int, BufferRecord]:
        found = [
            (record.header.generation, buffer, record)
            for buffer in range(BUFFERS)
            if (record := self._record(buffer)).header.state is BufferState.COMPLETE
            and record.header.iteration == iteration
        ]
        if not found:
            raise IterationMissingError(
                f"{self.name} has no complete buffer of iteration {iteration}"
            )
        _, buffer, record = max(found, key=lambda candidate: candidate[:2])
        return buffer, record

    def _room(self) -> MetaRoom:
        return unpack_room(bytes(self._view[room_span()]))

    def _meta(self, buffer: int, record: BufferRecord) -> bytes:
        if record.meta_offset:
            return os.pread(self._descriptor, record.meta_bytes, record.meta_offset)
        start = self.part.record_offset(buffer) + self.part.table_bytes
        return bytes(self._view[start : start + record.meta_bytes])

    def _sound_meta(self, buffer: int, record: BufferRecord) -> bytes | None:
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

    def _commit(self, writing: Writing, meta: bytes, digests: Sequence[int]) -> None:
        buffer = writing.buffer
        if self._record(buffer).header != writing.header:
            raise WritingLostError(
                f"{self.name}: buffer {buffer} was taken from the writer of iteration "
                f"{writing.iteration}, generation {writing.generation}"
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
        complete = BufferHeader(BufferState.COMPLETE, writing.iteration, writing.generation)
        digest = xxhash.xxh3_64(table)
        digest.update(meta)
        self._store(buffer, BufferRecord(complete, len(meta), digest.intdigest(), offset))

    def _abandon(self, writing: Writing) -> None:
        if self._record(writing.buffer).header == writing.header:
            self._store(writing.buffer, BufferRecord(BufferHeader(BufferState.EMPTY)))
