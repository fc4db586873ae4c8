"""The checkpoint memory of one agent: a segment for each rank whose part it holds."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Self

from castor_configs.errors import InputError
from castor_runtime.arena.budget import check_budget, check_growth
from castor_runtime.arena.errors import ForeignCheckpointError
from castor_runtime.arena.job_lock import JobLock
from castor_runtime.arena.layout import (
    HEADER_BYTES,
    LAYOUT_VERSION,
    PartLayout,
    SegmentOwner,
    pages,
    read_version,
    unpack_fixed,
)
from castor_runtime.arena.mapped_part import MappedPart
from castor_runtime.arena.replica import Replica
from castor_runtime.arena.segment_header import read_header
from castor_runtime.arena.segments import (
    SHARED_MEMORY,
    fault_in,
    read_start,
    segment_name,
)


class Arena:
    """The parts that one agent holds. It outlives the agent; `close` with `unlink` ends it.

    Holds the job's lock, so that nobody takes its segments for dead ones.

    Args:
        job: name of the job.
        run: which run of that name; see `JobSpec.run`.
        agent: name of the agent.
        fingerprint: 16 bytes that say what the checkpoints are of.
        folder: where the machine's shared memory is.
        place: is called with the rank and the mapping of each new segment, before a page of it is
            taken: see `NearGpus.place`.

    Raises:
        InputError: another user runs a job of that name here.
        ValueError: a name cannot be one, or the fingerprint is not 16 bytes long.
    """

    def __init__(
        self,
        job: str,
        run: str,
        agent: str,
        fingerprint: bytes,
        *,
        folder: Path = SHARED_MEMORY,
        place: Callable[[int, mmap.mmap], None] = lambda *_: None,
    ) -> None:
        self.owner = SegmentOwner(job, run, agent, fingerprint)
        self._folder = folder
        self._place = place
        self._lock = JobLock(job, run, folder=folder)
        self._replicas: dict[int, Replica] = {}
        self._limit_bytes: int | None = None

    @property
    def memory_bytes(self) -> int:
        """Size of all segments: their headers, their buffers, and what grew."""
        return sum(replica.memory_bytes for replica in self._replicas.values())

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks whose parts are held, ascending."""
        return tuple(sorted(self._replicas))

    def missing(self, parts: Sequence[PartLayout]) -> list[PartLayout]:
        """Return those of `parts` for which no intact segment is there.

        Raises:
            ForeignCheckpointError: a segment of that name is of another job, topology or layout
                version.
        """
        return [part for part in parts if not self._is_intact(part)]

    def add_parts(
        self,
        parts: Sequence[PartLayout],
        *,
        live_note: str = "the trainers' own memory is in use already",
        limit_bytes: int | None = None,
        what_fits: Callable[[int], str] = lambda _: "",
    ) -> frozenset[int]:
        """Make a segment for each part, or re-attach to the intact one of an earlier life.

        An own segment of other sizes or with a torn header is made anew, and loses its contents.
        New segments take their memory when they are written; `touch` takes it at once.

        Args:
            parts: what is to be held; ranks held before stay.
            live_note: see `check_budget`.
            limit_bytes: most that this arena may take; None or 0: what there is.
            what_fits: see `check_budget`.

        Returns:
            The ranks whose segments were there already, contents and all.

        Raises:
            InputError: the memory does not suffice; nothing was made.
            ForeignCheckpointError: a segment of that name is of another job, topology or layout
                version; nothing was made.
            ValueError: a rank is named twice.
        """
        ranks = [part.rank for part in parts]
        if len(set(ranks)) != len(ranks):
            raise ValueError(f"a rank is named twice in {sorted(ranks)}; name each once")
        self._limit_bytes = limit_bytes
        with self._alone():
            missing = self.missing(parts)
            if missing:
                held = set(self._replicas) | set(ranks) - {part.rank for part in missing}
                check_budget(
                    missing,
                    live_note=live_note,
                    limit_bytes=limit_bytes,
                    held_bytes=sum(self._size_bytes(rank) for rank in held),
                    what_fits=what_fits,
                    folder=self._folder,
                )
            for part in parts:
                self._attach(part, anew=part in missing)
        return frozenset(ranks) - {part.rank for part in missing}

    def remove_parts(self, ranks: Sequence[int]) -> None:
        """Give up the parts of `ranks`, memory and all; nothing for those that are not held."""
        for rank in sorted(ranks):
            replica = self._replicas.pop(rank, None)
            if replica is not None:
                replica.close()
                (self._folder / replica.name).unlink(missing_ok=True)

    def reassign(self, rank: int, part: PartLayout) -> None:
        """Hold `part` in the memory of `rank`'s, whose contents are lost. See `Replica.reassign`.

        Raises:
            KeyError: `rank` is not held here.
            ValueError: the sizes differ.
        """
        replica = self._replicas[rank]
        replica.reassign(part)
        del self._replicas[rank]
        stale = self._replicas.pop(part.rank, None)
        if stale is not None:
            stale.close()
        self._replicas[part.rank] = replica

    def make_room(self, rank: int, meta_bytes: int) -> None:
        """See to it that the part of `rank` has room for metadata of that size.

        Once they fill more than half of it, it is made four times their size, or twice, as there
        is memory: so that there is room before it is needed.

        Raises:
            KeyError: `rank` is not held here.
            InputError: there is no memory for what is needed; nothing changed.
        """
        replica = self._replicas[rank]
        with self._alone():
            for factor in (4, 2, 1):
                if (
                    2 * meta_bytes <= replica.meta_bytes
                    or factor * meta_bytes <= replica.meta_bytes
                ):
                    return
                try:
                    check_growth(
                        rank,
                        replica.part.buffers * pages(factor * meta_bytes),
                        buffers=replica.part.buffers,
                        held_bytes=self.memory_bytes,
                        limit_bytes=self._limit_bytes,
                        folder=self._folder,
                    )
                except InputError:
                    if factor == 1:
                        raise
                    continue
                replica.grow(factor * meta_bytes)
                return

    def touch(self, *, threads: int = 2) -> None:
        """Take all memory now, and map it; contents stay. Slow once (up to 5 s/GiB), then cheap.

        Does not hold Python's lock; call it in a thread where an event loop runs.

        Raises:
            InputError: the memory ran out.
        """
        maps = [replica.mapped for _, replica in sorted(self._replicas.items())]
        fault_in(maps, threads=threads)

    def replica(self, rank: int) -> Replica:
        """Return the part of `rank`.

        Raises:
            KeyError: it is not held here.
        """
        return self._replicas[rank]

    def segments(self) -> dict[int, str]:
        """Return the segments' names by rank, for those who open them with `Replica.open`."""
        return {rank: replica.name for rank, replica in sorted(self._replicas.items())}

    def close(self, *, unlink: bool) -> None:
        """Give up the mappings and the job's lock; with `unlink` the memory too."""
        if unlink:
            self.remove_parts(self.ranks)
        for replica in self._replicas.values():
            replica.close()
        self._replicas.clear()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(unlink=False)

    def _path(self, rank: int) -> Path:
        return self._folder / segment_name(self.owner.job, self.owner.run, self.owner.agent, rank)

    def _is_intact(self, part: PartLayout) -> bool:
        path = self._path(part.rank)
        try:
            header = read_start(path, HEADER_BYTES)
            if read_version(header) == LAYOUT_VERSION and unpack_fixed(header) is None:
                return False  # its maker died over it, or a bit of it has flipped
            if not any(header):
                return False  # its maker died before it wrote anything
            owner, found = read_header(path)
            if owner != self.owner:
                raise ForeignCheckpointError(
                    f"{path.name} belongs to agent {owner.agent} of run {owner.run} of job "
                    f"{owner.job}, fingerprint {owner.fingerprint.hex()}, not to agent "
                    f"{self.owner.agent} of run {self.owner.run} of job {self.owner.job}, "
                    f"{self.owner.fingerprint.hex()}: another model, world size "
                    "or placement; end that job, or give this one another name"
                )
            return (
                found.rank == part.rank
                and found.holds(part)
                and path.stat().st_size >= found.segment_bytes
            )
        except FileNotFoundError:
            return False

    def _attach(self, part: PartLayout, *, anew: bool) -> None:
        held = self._replicas.get(part.rank)
        if held is not None:
            if not anew:
                return
            held.close()
        name = self._path(part.rank).name
        if anew:
            self._replicas[part.rank] = Replica.create(
                name,
                self.owner,
                part,
                folder=self._folder,
                place=partial(self._place, part.rank),
            )
        else:
            self._replicas[part.rank] = Replica.open(
                name, fingerprint=self.owner.fingerprint, folder=self._folder
            )
        self._replicas[part.rank].ask_for_room = self._room_for

    def _room_for(self, mapped: MappedPart, meta_bytes: int) -> None:
        self.make_room(mapped.rank, meta_bytes)

    def _size_bytes(self, rank: int) -> int:
        return self._path(rank).stat().st_size

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep the machine's other agents out while room is counted and promised."""
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
