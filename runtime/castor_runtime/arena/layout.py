"""The layout of a segment of checkpoint memory: one held part, its buffers.

All numbers are little-endian. A page is 4096 bytes whatever the machine's own is.

    0      fixed header, written once, at creation, after the buffer headers
               0  magic "CASTORCM"        8  layout version u32     12  header bytes u32
              16  fingerprint 16 bytes   32  rank i64               40  data bytes u64
              48  metadata capacity u64  56  chunk bytes u64        64  job, 64 bytes, zero-padded
             128  agent, 64 bytes       192  run, 8 bytes          200  buffers u32, 1 or 2
             204  zero u32              208  xxh3_64 of bytes 0..207
    1024   room for metadata that outgrew its capacity; zeros: there is none yet
               0  offset u64               8  capacity u64          16  xxh3_64 of bytes 0..15
    2048   header of buffer 0            2176  header of buffer 1
               0  state u32                4  zero u32               8  iteration i64
              16  generation i64          24  metadata bytes u64    32  xxh3_64 of the record
              40  metadata offset u64     48  xxh3_64 of bytes 0..47, seeded with 1 + the index
    4096   buffer 0: data, from a page's start; then, from a page's start, its record: one xxh3_64
               a chunk (u64), then the metadata; padded to a page
    ...    buffer 1, likewise, if there are two
    ...    what grew: at the room's offset its capacity for each buffer, that of buffer 0 first

Metadata grow while training goes on, so the file grows at its end, and nothing that is mapped
moves. A buffer's header says where its own metadata lie (0: behind its table), so that what was
written before the room grew stays whole; earlier rooms are left as they are.

The magic and the layout version stay where they are in every version. A buffer is complete when its
header's own digest matches and its state says so; the header is written last, so a writer that dies
leaves the header as it was (WRITING), a torn one (bad digest: corrupt) or a complete one.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace

import xxhash

from castor_policy.agents.job_spec import check_run
from castor_policy.checkpoint_memory import BufferHeader, BufferState

MAGIC = b"CASTORCM"
LAYOUT_VERSION = 4
PAGE_BYTES = 4096
HEADER_BYTES = PAGE_BYTES
BUFFERS = 2
"""The most that a part has: one complete, one in progress."""

FINGERPRINT_BYTES = 16
NAME_BYTES = 64

_FIXED = struct.Struct("<8sII16sqQQQ64s64s8sI4x")
_DIGEST = struct.Struct("<Q")
_BUFFER = struct.Struct("<I4xqqQQQ")
_ROOM = struct.Struct("<QQ")
_ROOM_OFFSET = 1024
_BUFFER_OFFSET = 2048
_BUFFER_STRIDE = 128
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class PartLayout:
    """The size of one rank's part of the checkpoint.

    Attributes:
        rank: whose part it is.
        data_bytes: size of the tensor data.
        meta_bytes: capacity for metadata (counters, random states, the user's state) before any
            room is added.
        chunk_bytes: the unit of transfer and of digests; the last chunk may be shorter.
        buffers: one or two; see `castor_policy.checkpoint_memory.buffers_of`.

    Raises:
        ValueError: a size is out of range.
    """

    rank: int
    data_bytes: int
    meta_bytes: int
    chunk_bytes: int
    buffers: int = BUFFERS

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"rank must be 0 or more, not {self.rank}")
        if self.data_bytes < 1 or self.chunk_bytes < 1:
            raise ValueError(
                f"the part of rank {self.rank} needs data_bytes and chunk_bytes of 1 or more, "
                f"not {self.data_bytes} and {self.chunk_bytes}"
            )
        if self.meta_bytes < 0:
            raise ValueError(f"meta_bytes must be 0 or more, not {self.meta_bytes}")
        if not 1 <= self.buffers <= BUFFERS:
            raise ValueError(f"buffers must be 1 or {BUFFERS}, not {self.buffers}")

    @property
    def chunks(self) -> int:
        """Number of chunks of the data."""
        return -(-self.data_bytes // self.chunk_bytes)

    @property
    def table_bytes(self) -> int:
        """Size of the table of digests."""
        return _DIGEST.size * self.chunks

    @property
    def buffer_bytes(self) -> int:
        """Size of one buffer: data and record, each padded to a page."""
        return pages(self.data_bytes) + pages(self.table_bytes + self.meta_bytes)

    @property
    def segment_bytes(self) -> int:
        """Size of the whole segment before it grows: the header and the buffers."""
        return HEADER_BYTES + self.buffers * self.buffer_bytes

    def is_like(self, other: PartLayout) -> bool:
        """Whether it holds the same data, of whatever rank; metadata are given room as needed."""
        mine = (self.data_bytes, self.chunk_bytes, self.buffers)
        return mine == (other.data_bytes, other.chunk_bytes, other.buffers)

    def holds(self, wanted: PartLayout) -> bool:
        """Whether a segment of this layout may hold what is wanted: it may have a buffer more."""
        return self.buffers >= wanted.buffers and self.is_like(
            replace(wanted, buffers=self.buffers)
        )

    def data_offset(self, buffer: int) -> int:
        """Return where the data of `buffer` starts in the segment, in bytes."""
        return HEADER_BYTES + buffer * self.buffer_bytes

    def record_offset(self, buffer: int) -> int:
        """Return where the digests and metadata of `buffer` start in the segment, in bytes."""
        return self.data_offset(buffer) + pages(self.data_bytes)

    def chunk_span(self, chunk: int) -> tuple[int, int]:
        """Return the first byte of `chunk` in the data and the one after its last.

        Raises:
            ValueError: there is no such chunk.
        """
        if not 0 <= chunk < self.chunks:
            raise ValueError(f"there is no chunk {chunk}; use 0..{self.chunks - 1}")
        start = chunk * self.chunk_bytes
        return start, min(start + self.chunk_bytes, self.data_bytes)


@dataclass(frozen=True, slots=True)
class SegmentOwner:
    """To whom a segment belongs: a run of a job, one of its agents, what the checkpoints are of.

    Attributes:
        job: name of the job.
        run: which run of that name, 16 hex digits; see `JobSpec.run`.
        agent: name of the agent that owns the memory.
        fingerprint: 16 bytes over the topology and every rank's sections, equal on all ranks.

    Raises:
        ValueError: a name has other characters than letters, digits, "_", ".", "-" or more than
            64, the run is none, or the fingerprint is not 16 bytes long.
    """

    job: str
    run: str
    agent: str
    fingerprint: bytes

    def __post_init__(self) -> None:
        check_name("job", self.job)
        check_run(self.run)
        check_name("agent", self.agent)
        if len(self.fingerprint) != FINGERPRINT_BYTES:
            raise ValueError(
                f"a fingerprint has {FINGERPRINT_BYTES} bytes, not {len(self.fingerprint)}"
            )


@dataclass(frozen=True, slots=True)
class BufferRecord:
    """A buffer's header as it is stored.

    Attributes:
        header: state, iteration and generation.
        meta_bytes: size of the metadata that is there.
        record_digest: xxh3_64 of the table of digests and the metadata.
        meta_offset: where the metadata lie in the file, in bytes; 0: behind the table.
    """

    header: BufferHeader
    meta_bytes: int = 0
    record_digest: int = 0
    meta_offset: int = 0


@dataclass(frozen=True, slots=True)
class MetaRoom:
    """Room that was added for metadata, at the end of the segment's file.

    Attributes:
        offset: where that of buffer 0 starts, in bytes; that of buffer 1 follows.
        capacity_bytes: for each buffer.
    """

    offset: int = 0
    capacity_bytes: int = 0

    def start(self, buffer: int) -> int:
        """Return where the room of `buffer` starts in the file, in bytes."""
        return self.offset + buffer * self.capacity_bytes


def check_name(what: str, name: str) -> None:
    """Raise ValueError unless `name` may be part of a segment's name."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{what} {name!r} cannot name shared memory; use up to {NAME_BYTES} letters, digits, "
            "'_', '.' or '-', a letter or digit first"
        )


def pack_fixed(owner: SegmentOwner, part: PartLayout) -> bytes:
    """Return the fixed header of a segment."""
    packed = _FIXED.pack(
        MAGIC,
        LAYOUT_VERSION,
        HEADER_BYTES,
        owner.fingerprint,
        part.rank,
        part.data_bytes,
        part.meta_bytes,
        part.chunk_bytes,
        owner.job.encode(),
        owner.agent.encode(),
        bytes.fromhex(owner.run),
        part.buffers,
    )
    return packed + _DIGEST.pack(xxhash.xxh3_64_intdigest(packed))


def read_version(header: bytes) -> int | None:
    """Return the layout version of a segment's first bytes; None where it is no segment."""
    if len(header) < 12 or not header.startswith(MAGIC):
        return None
    return int.from_bytes(header[8:12], "little")


def unpack_fixed(header: bytes) -> tuple[SegmentOwner, PartLayout] | None:
    """Return what a fixed header of this layout version says; None where it is torn or foreign."""
    if read_version(header) != LAYOUT_VERSION or len(header) < _FIXED.size + _DIGEST.size:
        return None
    if _DIGEST.unpack_from(header, _FIXED.size)[0] != xxhash.xxh3_64_intdigest(
        header[: _FIXED.size]
    ):
        return None
    _, _, _, fingerprint, rank, data, meta, chunk, *names, buffers = _FIXED.unpack_from(header)
    job, agent, run = names
    owner = SegmentOwner(
        job.rstrip(b"\0").decode(), run.hex(), agent.rstrip(b"\0").decode(), fingerprint
    )
    return owner, PartLayout(rank, data, meta, chunk, buffers)


def buffer_header_offset(buffer: int) -> int:
    """Return where the header of `buffer` stands in the segment, in bytes."""
    return _BUFFER_OFFSET + buffer * _BUFFER_STRIDE


def buffer_header_bytes() -> int:
    """Return the size of a buffer's header with its digest."""
    return _BUFFER.size + _DIGEST.size


def pack_buffer(buffer: int, record: BufferRecord) -> bytes:
    """Return the header of `buffer`, its digest last."""
    header = record.header
    packed = _BUFFER.pack(
        header.state,
        header.iteration,
        header.generation,
        record.meta_bytes,
        record.record_digest,
        record.meta_offset,
    )
    return packed + _DIGEST.pack(xxhash.xxh3_64_intdigest(packed, seed=1 + buffer))


def unpack_buffer(buffer: int, packed: bytes) -> BufferRecord | None:
    """Return what the header of `buffer` says; None where it is torn."""
    body = packed[: _BUFFER.size]
    if _DIGEST.unpack_from(packed, _BUFFER.size)[0] != xxhash.xxh3_64_intdigest(
        body, seed=1 + buffer
    ):
        return None
    state, iteration, generation, meta_bytes, record_digest, meta_offset = _BUFFER.unpack(body)
    header = BufferHeader(BufferState(state), iteration, generation)
    return BufferRecord(header, meta_bytes, record_digest, meta_offset)


def room_span() -> slice:
    """Return where the record of added room stands in the segment."""
    return slice(_ROOM_OFFSET, _ROOM_OFFSET + _ROOM.size + _DIGEST.size)


def pack_room(room: MetaRoom) -> bytes:
    """Return the record of added room, its digest last."""
    packed = _ROOM.pack(room.offset, room.capacity_bytes)
    return packed + _DIGEST.pack(xxhash.xxh3_64_intdigest(packed))


def unpack_room(packed: bytes) -> MetaRoom:
    """Return what room was added; none where the record is torn: more is then added anew."""
    body = packed[: _ROOM.size]
    if _DIGEST.unpack_from(packed, _ROOM.size)[0] != xxhash.xxh3_64_intdigest(body):
        return MetaRoom()
    return MetaRoom(*_ROOM.unpack(body))


def pages(size_bytes: int) -> int:
    """Return the size rounded up to whole pages."""
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES
