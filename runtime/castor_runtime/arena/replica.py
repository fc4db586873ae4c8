"""One held part: one or two buffers in a segment that an agent and its trainers map at once.

One writer at a time; readers may look at any moment. See `castor_runtime.arena.layout`.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

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
)
from castor_runtime.arena.layout import (
    BufferRecord,
    PartLayout,
    SegmentOwner,
    pack_fixed,
)
from castor_runtime.arena.mapped_part import MappedPart
from castor_runtime.arena.segment_header import read_header
from castor_runtime.arena.segments import (
    SHARED_MEMORY,
    create_file,
    fault_in,
    open_file,
    segment_name,
)

# A reader may catch a header half written; the writer needs nanoseconds to finish it.
_READS_OF_A_HEADER = 100


class Replica(MappedPart):
    """A part held in shared memory. Make one by `create` or `open`."""

    @classmethod
    def create(
        cls,
        name: str,
        owner: SegmentOwner,
        part: PartLayout,
        *,
        folder: Path = SHARED_MEMORY,
        place: Callable[[mmap.mmap], None] = lambda _: None,
    ) -> Replica:
        """Make a new segment with empty buffers in place of one of that name.

        Args:
            name: of the segment in `folder`.
            owner: whom it belongs to.
            part: rank and sizes.
            folder: where the machine's shared memory is.
            place: is called with the mapping before any page of it is taken.

        Raises:
            OSError: it cannot be made.
        """
        path = folder / name
        mapped = create_file(path, part.segment_bytes)
        place(mapped)
        replica = cls(path, mapped, owner, part)
        for buffer in range(part.buffers):
            replica.store(buffer, BufferRecord(BufferHeader(BufferState.EMPTY)))
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

    def headers(self) -> tuple[BufferHeader, ...]:
        """Return the buffers' headers; one whose own digest does not match counts as CORRUPT."""
        return tuple(self.record(buffer).header for buffer in range(self.part.buffers))

    def offered(self) -> frozenset[int]:
        """Return the iterations that are complete here."""
        return offered(self.headers())

    def begin(
        self,
        iteration: int,
        generation: int,
        agreed: int | None,
        *,
        beside_fetch: bool = False,
    ) -> Writing:
        """Take a buffer to write `iteration` into; it counts as WRITING from here on.

        Args:
            iteration: what will be written.
            generation: the attempt that writes it.
            agreed: the newest iteration known to be complete on every rank, which is kept; for an
                own replica of one buffer the newest that all peers have: see `buffer_to_write`.
            beside_fetch: `agreed` may be fetched into the replica meanwhile.

        Raises:
            ValueError: iteration or generation is negative, or no buffer may be written.
        """
        header = BufferHeader(BufferState.WRITING, iteration, generation)
        buffer = buffer_to_write(self.headers(), agreed, iteration, beside_fetch=beside_fetch)
        self.store(buffer, BufferRecord(header))
        return Writing(self, buffer, header)

    def snapshot(self, iteration: int) -> Snapshot:
        """Return the complete buffer of `iteration`, without a copy, its record checked.

        The data are checked by `verify`, or chunk by chunk against the digests.

        Raises:
            IterationMissingError: no complete buffer holds it.
            DamagedPartError: its digests or metadata are damaged.
        """
        buffer, record = self._find(iteration)
        meta = self.sound_meta(buffer, record)
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
            data=self.data(buffer),
            meta=meta,
            digests=struct.unpack(f"<{self.chunks}Q", table),
            chunk_bytes=self.chunk_bytes,
            fingerprint=self.fingerprint,
            _mapped=self,
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
                self.store(buffer, BufferRecord(corrupt))

    def keep_only(self, iteration: int | None) -> None:
        """Empty each complete or half-written buffer but the complete one of `iteration`."""
        for buffer, header in enumerate(self.headers()):
            kept = header.state is BufferState.COMPLETE and header.iteration == iteration
            if not kept and header.state in (BufferState.COMPLETE, BufferState.WRITING):
                self.store(buffer, BufferRecord(BufferHeader(BufferState.EMPTY)))

    def drop(self, iteration: int) -> None:
        """Empty each complete or half-written buffer of `iteration`."""
        for buffer, header in enumerate(self.headers()):
            is_there = header.state in (BufferState.COMPLETE, BufferState.WRITING)
            if is_there and header.iteration == iteration:
                self.store(buffer, BufferRecord(BufferHeader(BufferState.EMPTY)))

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

    def touch(self, *, threads: int = 2) -> None:
        """Fault in every page for this process; contents stay.

        Raises:
            InputError: the memory ran out.
        """
        fault_in([self.mapped], threads=threads)

    def _find(self, iteration: int) -> tuple[int, BufferRecord]:
        found = [
            (record.header.generation, buffer, record)
            for buffer in range(self.part.buffers)
            if (record := self.record(buffer)).header.state is BufferState.COMPLETE
            and record.header.iteration == iteration
        ]
        if not found:
            raise IterationMissingError(
                f"{self.name} has no complete buffer of iteration {iteration}"
            )
        _, buffer, record = max(found, key=lambda candidate: candidate[:2])
        return buffer, record
