"""The agent's checkpoint memory in the job's terms: which parts are here, and which are whole."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from castor_policy.agents.job_spec import JobSpec
from castor_policy.checkpoint_memory import newest_generation, shards_in_memory, smaller
from castor_runtime.arena import (
    SHARED_MEMORY,
    Arena,
    ArenaError,
    IterationMissingError,
    JobLock,
    NearGpus,
    PartLayout,
    Replica,
    Snapshot,
    Topology,
    segment_name,
)
from castor_runtime.arena.budget import shown
from castor_runtime.arena.leftovers import mark_kept, unmark_kept
from castor_runtime.arena.numa import SYSTEM
from castor_runtime.transport import PartMissingError

_TOUCH_THREADS = max(1, min(8, (os.cpu_count() or 2) // 2))
_VERIFY_THREADS = max(1, min(4, (os.cpu_count() or 2) // 2))


@dataclass(frozen=True, slots=True)
class RankLayout:
    """Size of a rank's part and what it is of, as its first trainer told: the same on all ranks.

    Attributes:
        rank: the rank.
        data_bytes: its flat states.
        meta_bytes: room for everything else at the start; it grows, and is no part of what a
            checkpoint is of.
        chunk_bytes: size of a chunk.
        fingerprint: 32 hex digits of job, topology and layout; of all ranks together.
    """

    rank: int
    data_bytes: int
    meta_bytes: int
    chunk_bytes: int
    fingerprint: str

    def part(self, buffers: int) -> PartLayout:
        """Return the layout of its segment, of so many buffers."""
        return PartLayout(self.rank, self.data_bytes, self.meta_bytes, self.chunk_bytes, buffers)

    def to_json(self) -> str:
        """Return it as it stands in the store."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__}, sort_keys=True)

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> RankLayout:
        """Read a trainer's "layout" or a document in the store."""
        return cls(
            rank=int(message["rank"]),
            data_bytes=int(message["data_bytes"]),
            meta_bytes=int(message["meta_bytes"]),
            chunk_bytes=int(message["chunk_bytes"]),
            fingerprint=str(message["fingerprint"]),
        )


@dataclass(frozen=True, slots=True)
class Left:
    """What an earlier life of an agent left in its checkpoint memory.

    Attributes:
        layouts: by rank, for the store that has to know them before anybody can hold the parts.
        holdings: for each rank the iterations that are complete.
        generation: the newest one that completed any of them; 0 without any.
    """

    layouts: Mapping[int, RankLayout]
    holdings: Mapping[int, tuple[int, ...]]
    generation: int = 0


class CheckpointMemory:
    """The parts that one agent holds; the source from which its peers fetch.

    Args:
        spec: the job.
        agent: name of the agent; a later life of it finds the same memory again.
        home: the agent's folder, for whoever comes with another run of the job's name.
        comes_again: somebody may start this agent again after its death; see `Holder`.
        system: under which what the kernel says of GPUs and NUMA nodes is; see `Topology`.

    Raises:
        InputError: another run of the job's name lives on this machine.
    """

    def __init__(
        self,
        spec: JobSpec,
        agent: str,
        *,
        home: Path | str = "",
        comes_again: bool = False,
        system: Path = SYSTEM,
    ) -> None:
        self._spec = spec
        self._agent = agent
        self._lock = JobLock(spec.job, spec.run, home=home, comes_again=comes_again)
        gpu_nodes = Topology.read(system).gpu_nodes(os.environ)  # which trainers inherit
        self._near = NearGpus(gpu_nodes, spec.ranks_per_machine)
        self._arena: Arena | None = None
        self._left = False

    @property
    def is_empty(self) -> bool:
        """Nothing is held, and nothing that `left` has found waits to be."""
        return not self._left and not self.segments()

    @property
    def removed(self) -> list[str]:
        """Segments of dead runs of the job's name that had to go first."""
        return self._lock.removed

    def left(self) -> Left:
        """Return what an earlier life of this agent has left, of this run and no other."""
        layouts: dict[int, RankLayout] = {}
        held: dict[int, tuple[int, ...]] = {}
        generation = 0
        any_rank = segment_name(self._spec.job, self._spec.run, self._agent, 0)[:-1] + "*"
        for path in sorted(SHARED_MEMORY.glob(any_rank)):
            try:
                replica = Replica.open(path.name, run=self._spec.run)
            except (ArenaError, OSError):
                continue  # will be made anew, or refused by name, when it is wanted
            with replica:
                part, iterations = replica.part, replica.offered()
                if replica.owner.agent != self._agent or not iterations:
                    continue
                layouts[part.rank] = RankLayout(
                    part.rank,
                    part.data_bytes,
                    part.meta_bytes,
                    part.chunk_bytes,
                    replica.fingerprint.hex(),
                )
                held[part.rank] = tuple(sorted(iterations))
                generation = max(generation, newest_generation(replica.headers()))
        self._left = bool(layouts)
        return Left(layouts, held, generation)

    @property
    def memory_bytes(self) -> int:
        """What it has taken."""
        return self._arena.memory_bytes if self._arena else 0

    def segments(self) -> dict[int, str]:
        """Return the segments' names by rank."""
        return self._arena.segments() if self._arena else {}

    def hold(self, machine: int, layouts: Mapping[int, RankLayout]) -> None:
        """Hold what belongs on `machine`, and nothing else; what is here already stays.

        Raises:
            InputError: it does not fit; the message has the table.
            ForeignCheckpointError: memory of that name belongs to another job or topology.
            KeyError: a layout is missing.
        """
        layout = layouts[self._spec.ranks_held_by(machine)[0]]
        wanted = [
            layouts[rank].part(self._spec.buffers_of(machine, rank))
            for rank in self._spec.ranks_held_by(machine)
        ]
        fingerprint = bytes.fromhex(layout.fingerprint)
        if self._arena is None:
            self._arena = Arena(
                self._spec.job,
                self._spec.run,
                self._agent,
                fingerprint,
                place=self._near.place,
            )
        ranks = {part.rank for part in wanted}
        unwanted = [rank for rank in self._arena.ranks if rank not in ranks]
        for part in self._arena.missing(wanted):
            fitting = [rank for rank in unwanted if self._fits(rank, part)]
            if fitting:
                # Its pages stay on the node where they are: a recovery would wait for the copy.
                rank = min(fitting, key=lambda held: not self._lies_alike(held, part.rank))
                self._arena.reassign(rank, part)
                unwanted.remove(rank)
        self._arena.remove_parts(unwanted)
        shard_bytes = sum(
            layouts[rank].part(1).buffer_bytes for rank in self._spec.ranks_of(machine)
        )
        self._arena.add_parts(
            wanted,
            limit_bytes=self._spec.memory.limit_bytes or None,
            what_fits=partial(_what_fits, self._spec, shard_bytes),
        )

    def _fits(self, rank: int, part: PartLayout) -> bool:
        return self.replica(rank).part.is_like(part)

    def _lies_alike(self, held: int, rank: int) -> bool:
        return self._near.node_of(held) == self._near.node_of(rank)

    async def make_room(self, rank: int, meta_bytes: int) -> None:
        """Have room for metadata of that size in the part of `rank`, ahead of need if it can be.

        Raises:
            InputError: it does not fit; the message has the table.
            PartMissingError: the part is not held here.
        """
        self.replica(rank)
        assert self._arena is not None, "it holds a part"
        await asyncio.to_thread(self._arena.make_room, rank, meta_bytes)

    async def touch(self) -> None:
        """Fault all of it in, once; a page fault during training costs seconds a GiB."""
        if self._arena is not None:
            await asyncio.to_thread(self._arena.touch, threads=_TOUCH_THREADS)

    def holdings(self) -> dict[int, tuple[int, ...]]:
        """Return for each rank the iterations that are complete here."""
        return {r: tuple(sorted(self.replica(r).offered())) for r in self._ranks()}

    def keep_only(self, iteration: int | None) -> None:
        """Invalidate what is of another iteration."""
        for rank in self._ranks():
            self.replica(rank).keep_only(iteration)

    async def verify(self, rank: int, iteration: int) -> bool:
        """Read a part against its checksums; a bad one is never offered again."""
        replica = self.replica(rank)
        try:
            bad = await asyncio.to_thread(replica.verify, iteration, _VERIFY_THREADS)
        except IterationMissingError:
            return False
        if bad:
            replica.mark_corrupt(iteration)
        return not bad

    def mark_corrupt(self, rank: int, iteration: int) -> None:
        """See to it that this copy is never offered again."""
        self.replica(rank).mark_corrupt(iteration)

    def replica(self, rank: int) -> Replica:
        """Return the part of `rank`.

        Raises:
            PartMissingError: it is not held here.
        """
        if self._arena is None or rank not in self._arena.ranks:
            raise PartMissingError(f"agent {self._agent} holds no part of rank {rank}")
        return self._arena.replica(rank)

    def open(self, rank: int, iteration: int) -> Snapshot:
        """Return a complete part for a peer that asks for it.

        Raises:
            PartMissingError: it is not here, or not complete.
        """
        try:
            return self.replica(rank).snapshot(iteration)
        except IterationMissingError as error:
            raise PartMissingError(str(error)) from error

    async def final_digests(self, machine: int) -> tuple[int, dict[int, str]]:
        """Return the newest iteration whole on `machine`, and SHA-256 of each of its ranks' data.

        Raises:
            LookupError: there is no iteration that all its ranks have.
        """
        ranks = self._spec.ranks_of(machine)
        common = set.intersection(*(set(self.replica(rank).offered()) for rank in ranks))
        if not common:
            raise LookupError(f"machine {machine} holds no complete iteration of its ranks")
        iteration = max(common)
        # At once: SHA-256 of one takes a core, and gives Python's lock up for it.
        snapshots = [self.replica(rank).snapshot(iteration) for rank in ranks]
        digests = await asyncio.gather(*(asyncio.to_thread(_sha256, one) for one in snapshots))
        return iteration, dict(zip(ranks, digests, strict=True))

    def forget(self) -> None:
        """Give the memory back, an earlier life's too; the job may yet need this agent."""
        if self._arena is not None:
            self._arena.close(unlink=True)
            self._arena = None
        self._left = False
        any_rank = segment_name(self._spec.job, self._spec.run, self._agent, 0)[:-1] + "*"
        for path in SHARED_MEMORY.glob(any_rank):
            path.unlink(missing_ok=True)

    def keep(self, reason: str) -> bool:
        """Mark what is complete here as kept for `castor resume`; False if there is nothing."""
        if not self.left().holdings:
            return False
        mark_kept(self._spec.job, self._spec.run, self._lock.home, reason)
        return True

    def close(self, *, unlink: bool) -> None:
        """Let go of it; with `unlink` the memory is gone, an earlier life's too."""
        if unlink:
            self.forget()
            unmark_kept(self._spec.job, self._spec.run)
        if self._arena is not None:
            self._arena.close(unlink=False)
            self._arena = None
        self._lock.close()

    def _ranks(self) -> tuple[int, ...]:
        return self._arena.ranks if self._arena else ()


def _what_fits(spec: JobSpec, shard_bytes: int, there_bytes: int) -> str:
    """Return a sentence on what of a job would fit where it does not, after the others."""
    replicas = max(map(len, spec.replicas))
    for mode, count in smaller(spec.memory.mode, replicas):
        needed = shards_in_memory(mode, count) * shard_bytes
        if needed <= there_bytes:
            fewer = "" if count == replicas else f" --replicas {count}"
            return f". What would fit: --memory {mode}{fewer}, about {shown(needed)}"
    least = shown(2 * shard_bytes)
    return f". Not even one replica fits, about {least}: more machines make smaller shards"


def _sha256(snapshot: Snapshot) -> str:
    return hashlib.sha256(snapshot.data).hexdigest()
