"""One held part: two buffers in a segment that an agent and its trainers map at once.

One writer at a time; readers may look at any moment. See `castor_runtime.arena.layout`.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import xxhash

from castor_policy.checkpoint_memory import (
    BufferHeader,
    BufferState,
    buffer_to_write,
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
    HEADER_BYTES,
    LAYOUT_VERSION,
    BufferRecord,
    PartLayout,
    SegmentOwner,
    buffer_header_bytes,
    buffer_header_offset,
    pack_buffer,
    pack_fixed,
    read_version,
    unpack_buffer,
    unpack_fixed,
)
from castor_runtime.arena.segments import (
    SHARED_MEMORY,
    Progress,
    create_file,
    fault_in,
    open_file,
    read_start,
    segment_name,
)

# A reader may catch a header half written; the writer needs nanoseconds to finish it.
_READS_OF_A_HEADER = 100


class Replica:
    """A part held in shared memory. Make one by `create` or `open`.

    Attributes:
        name: of the segment in its folder.
        owner: job, agent and fingerprint that it belongs to.
        part: rank and sizes.
    """

    def __init__(
        self, path: Path, mapped: mmap.mmap, owner: SegmentOwner, part: PartLayout
    ) -> None:
        self.name = path.name
        self.owner = owner
        self.part = part
        self._path = path
        self._map = mapped
        self._view = memoryview(mapped)

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
        cls, name: str, *, fingerprint: bytes | None = None, folder: Path = SHARED_MEMORY
    ) -> Replica:
        """Map the segment `name`.

        Args:
            name: of the segment in `folder`.
            fingerprint: what it has to be of; None: whatever it is of.
            folder: where the machine's shared memory is.

        Raises:
            ForeignCheckpointError: it is no segment of this layout version, is damaged in its
                fixed header or its length, or is of another fingerprint.
            OSError: it is not there.
        """
        path = folder / name
        owner, part = read_header(path)
        if fingerprint is not None and owner.fingerprint != fingerprint:
            raise ForeignCheckpointError(
                f"{name} holds checkpoints of another job or topology: its fingerprint is "
                f"{owner.fingerprint.hex()}, not {fingerprint.hex()}; remove it or name the job "
                "otherwise"
            )
        mapped = open_file(path)
        found_bytes = len(mapped)
        if found_bytes != part.segment_bytes:
            mapped.close()
            raise ForeignCheckpointError(
                f"{name} is {found_bytes} bytes long where its header says "
                f"{part.segment_bytes}; remove it"
            )
        return cls(path, mapped, owner, part)

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
        """Capacity for metadata of one buffer."""
        return self.part.meta_bytes

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
        """Size of the segment."""
        return self.part.segment_bytes

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
        if not self._record_is_sound(buffer, record):
            raise DamagedPartError(
                f"{self.name}: the digests or metadata of iteration {iteration} are damaged"
            )
        start = self.part.record_offset(buffer)
        table = self._view[start : start + self.part.table_bytes]
        start += self.part.table_bytes
        return Snapshot(
            iteration=iteration,
            generation=record.header.generation,
            rank=self.rank,
            data=self._data(buffer),
            meta=bytes(self._view[start : start + record.meta_bytes]),
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
        if replace(part, rank=self.rank) != self.part:
            raise ValueError(f"{self.name} holds {self.part}; it cannot hold {part}")
        self.keep_only(None)
        fixed = pack_fixed(self.owner, part)
        self._view[: len(fixed)] = fixed
        path = self._path.with_name(segment_name(self.owner.job, self.owner.agent, part.rank))
        self._path.rename(path)
        self._path, self.name, self.part = path, path.name, part

    def touch(self, *, threads: int = 2, on_progress: Progress | None = None) -> None:
        """Fault in every page for this process; contents stay.

        Raises:
            InputError: the memory ran out.
        """
        fault_in([self.mapped], threads=threads, on_progress=on_progress)

    def close(self) -> None:
        """Give up the mapping; the segment stays. Views of it that live on keep it mapped."""
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

    def _record_is_sound(self, buffer: int, record: BufferRecord) -> bool:
        if record.meta_bytes > self.meta_bytes:
            return False
        start = self.part.record_offset(buffer)
        end = start + self.part.table_bytes + record.meta_bytes
        with self._view[start:end] as view:
            return xxhash.xxh3_64_intdigest(view) == record.record_digest

    def _commit(self, writing: Writing, meta: bytes, digests: Sequence[int]) -> None:
        buffer = writing.buffer
        if self._record(buffer).header != writing.header:
            raise WritingLostError(
                f"{self.name}: buffer {buffer} was taken from the writer of iteration "
                f"{writing.iteration}, generation {writing.generation}"
            )
        record = struct.pack(f"<{self.chunks}Q", *digests) + meta
        start = self.part.record_offset(buffer)
        self._view[start : start + len(record)] = record
        complete = BufferHeader(BufferState.COMPLETE, writing.iteration, writing.generation)
        self._store(buffer, BufferRecord(complete, len(meta), xxhash.xxh3_64_intdigest(record)))

    def _abandon(self, writing: Writing) -> None:
        if self._record(writing.buffer).header == writing.header:
            self._store(writing.buffer, BufferRecord(BufferHeader(BufferState.EMPTY)))


def read_header(path: Path) -> tuple[SegmentOwner, PartLayout]:
    """Return whose a segment is and its sizes.

    Raises:
        ForeignCheckpointError: it is no segment, is of another layout version, or is torn.
        OSError: it cannot be read.
    """
    header = read_start(path, HEADER_BYTES)
    version = read_version(header)
    if version is None:
        raise ForeignCheckpointError(f"{path.name} is no checkpoint memory of Castor; remove it")
    if version != LAYOUT_VERSION:
        raise ForeignCheckpointError(
            f"{path.name} is of layout version {version}, this Castor writes {LAYOUT_VERSION}; "
            "finish the job with the version that began it, or remove the segment"
        )
    found = unpack_fixed(header)
    if found is None:
        raise ForeignCheckpointError(f"the header of {path.name} is damaged; remove it")
    return found
