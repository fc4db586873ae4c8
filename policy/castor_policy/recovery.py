"""What to recover from where: one iteration for all ranks, and a source for every shard.

The rules are the paper's (sec. 6.2), from the fastest tier that has the shard: a rank whose own
memory is whole loads from it; a rank whose machine was lost fetches from a machine that holds a
replica; if any shard has no whole replica left in memory, every rank loads the newest persistent
checkpoint, for an iteration is never mixed with another.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableSequence, Sequence
from dataclasses import dataclass
from enum import StrEnum

from castor_policy.placement import Placement

WHOLE = 0
"""Memory state of a machine: it holds its own shard and every replica placed on it."""

OWN_ONLY = 1
"""It holds its own shard; the replicas of others are not there yet."""

NOTHING = 2
"""It holds no complete checkpoint: lost, or just replaced."""


def assign_sources(
    lost: Sequence[int],
    lost_count: int,
    replicas: Sequence[Sequence[int]],
    memory_state: Sequence[int],
    load: MutableSequence[int],
    sources: MutableSequence[int],
) -> int:
    """Give each lost rank a holder to fetch from; return the largest number of ranks one serves.

    Greedy: ranks in the order of `lost`, each to the whole holder that serves the fewest so far,
    the earliest in placement order among equals. A holder counts as whole when its
    `memory_state` is `WHOLE`. Returns -1 when some rank has no whole holder: the memory tier
    cannot be used, and `sources` is then undefined.

    Args:
        lost: ranks whose own copy is gone; the first `lost_count` entries count.
        lost_count: how many.
        replicas: for each rank, the machines that hold its shard, itself first.
        memory_state: for each machine `WHOLE`, `OWN_ONLY` or `NOTHING`.
        load: scratch, one entry a machine, all zero; all zero again on return.
        sources: receives the holder for each entry of `lost`.

    Written over plain indexing, without containers of its own, so that the simulator's sweep
    engine compiles this very function instead of a copy: a copied policy parts from its twin
    unseen (docs/architecture.md).
    """
    heaviest = 0
    assigned = 0
    for index in range(lost_count):
        rank = lost[index]
        holders = replicas[rank]
        best = -1
        for holder_index in range(1, len(holders)):
            holder = holders[holder_index]
            if memory_state[holder] == WHOLE and (best < 0 or load[holder] < load[best]):
                best = holder
        if best < 0:
            heaviest = -1
            break
        sources[index] = best
        load[best] += 1
        assigned += 1
        heaviest = max(heaviest, load[best])
    for index in range(assigned):
        load[sources[index]] = 0
    return heaviest


class Tier(StrEnum):
    """Where a shard comes from, fastest first."""

    OWN_MEMORY = "own_memory"
    PEER = "peer"
    STORAGE = "storage"
    SCRATCH = "scratch"


@dataclass(frozen=True, slots=True)
class RecoveryPlan:
    """One iteration for all ranks, and where each rank's shard comes from.

    Attributes:
        iteration: the iteration that every rank loads; 0 means the start.
        tier: `OWN_MEMORY` if every rank has its own copy, `PEER` if some fetch from a peer,
            `STORAGE` if all load the persistent checkpoint, `SCRATCH` if there is none.
        peers: for the ranks that fetch from a peer, the machine to fetch from.
        heaviest_load: the largest number of ranks that one holder serves.
    """

    iteration: int
    tier: Tier
    peers: Mapping[int, int]
    heaviest_load: int

    def source(self, rank: int) -> tuple[Tier, int | None]:
        """Return the tier that `rank` loads from, and the machine if it is a peer."""
        if self.tier in (Tier.STORAGE, Tier.SCRATCH):
            return self.tier, None
        if rank in self.peers:
            return Tier.PEER, self.peers[rank]
        return Tier.OWN_MEMORY, None


def plan_recovery(
    placement: Placement,
    holdings: Mapping[int, Mapping[int, Collection[int]]],
    persistent_iteration: int | None,
) -> RecoveryPlan:
    """Choose the newest iteration that is as safe as any, and spread its sources.

    Args:
        placement: where replicas belong.
        holdings: for each live machine, for each rank, the iterations of that rank's shard that
            it holds complete and verified. A machine that is not a key is dead.
        persistent_iteration: the newest complete persistent checkpoint, or None.

    The newest iteration that every rank can load wins, memory before storage where both have it,
    unless an older one has a copy that it lacks: it was in flight, and since a recovery keeps no
    other iteration, the next machine lost could take the only copy of a shard with it.
    Equal inputs give equal plans, so a plan made again after the death of the root that made it
    is the same plan.
    """
    ranks = range(placement.machines)
    candidates: set[int] | None = None
    for rank in ranks:
        held: set[int] = set()
        for machine in placement.replicas[rank]:
            held.update(holdings.get(machine, {}).get(rank, ()))
        candidates = held if candidates is None else candidates & held
        if not candidates:
            break
    newest = _newest_safe(placement, holdings, candidates or ())
    if newest is None or (persistent_iteration is not None and persistent_iteration > newest):
        if persistent_iteration is None:
            return RecoveryPlan(0, Tier.SCRATCH, {}, 0)
        return RecoveryPlan(persistent_iteration, Tier.STORAGE, {}, 0)

    def holds(machine: int, rank: int) -> bool:
        return newest in holdings.get(machine, {}).get(rank, ())

    lost = [rank for rank in ranks if not holds(rank, rank)]
    able: list[tuple[int, ...]] = [()] * placement.machines
    for rank in lost:
        peers = (peer for peer in placement.replicas[rank][1:] if holds(peer, rank))
        able[rank] = (rank, *peers)
    sources = [0] * len(lost)
    every_holder = [WHOLE] * placement.machines
    load = [0] * placement.machines
    heaviest = assign_sources(lost, len(lost), able, every_holder, load, sources)
    tier = Tier.PEER if lost else Tier.OWN_MEMORY
    return RecoveryPlan(newest, tier, dict(zip(lost, sources, strict=True)), heaviest)


def _newest_safe(
    placement: Placement,
    holdings: Mapping[int, Mapping[int, Collection[int]]],
    candidates: Collection[int],
) -> int | None:
    """Return the newest candidate of which every copy exists that an older one has."""
    chosen = None
    kept: set[tuple[int, int]] = set()
    for iteration in sorted(candidates):
        copies = {
            (machine, rank)
            for rank in range(placement.machines)
            for machine in placement.replicas[rank]
            if iteration in holdings.get(machine, {}).get(rank, ())
        }
        if copies >= kept:
            chosen = iteration
        kept |= copies
    return chosen
