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

NO_ITERATION = -1
"""In place of an iteration: there is no checkpoint. Iteration 0 is one, of the start."""

OWN_MEMORY, PEER, STORAGE, SCRATCH = range(4)
"""The tiers for compiled code, which has no enumerations; `TIERS` has the `Tier` of each."""


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


def sources_at_once(
    planned: Sequence[Sequence[int]], shard: int, left: Sequence[int]
) -> tuple[int, ...]:
    """Return the machines that one shard is fetched from at once.

    The first that is left, which the plan has chosen, and with it every holder that no other lost
    shard is to come from: what `assign_sources` has spread stays spread. Holders that send to
    several share their link fairly between them, so over equal links nobody waits longer than
    `heaviest` shards take one link, which is what the simulator reckons with. Where holders' links
    are slower than the receiver's, or one of them stalls, it takes less than with one holder.

    Args:
        planned: for each shard its sources, in the plan's order; its own machine first if that
            has it.
        shard: the one that is fetched.
        left: the sources that have not been tried, in the plan's order; not empty.
    """
    taken = {row[0] for other, row in enumerate(planned) if other not in (shard, row[0])}
    return (left[0], *(machine for machine in left[1:] if machine not in taken))


def newest_safe(copies: Sequence[Sequence[int]]) -> int:
    """Return the newest candidate of which every copy exists that an older one has; -1: none.

    Args:
        copies: for each candidate, oldest first, what is not 0 for each place of a copy that
            there is. Every shard has a copy of every candidate.

    Returns:
        Its index. Written in the subset that numba compiles, as `choose` is.
    """
    for back in range(len(copies)):
        candidate = len(copies) - 1 - back
        lacking = 0
        for older in range(candidate):
            for place in range(len(copies[older])):
                if copies[older][place] != 0 and copies[candidate][place] == 0:
                    lacking += 1
        if lacking == 0:
            return candidate
    return -1


def choose(
    memory_iteration: int,
    most_held: int,
    storage_iteration: int,
    lost: Sequence[int],
    lost_count: int,
    replicas: Sequence[Sequence[int]],
    memory_state: Sequence[int],
    load: MutableSequence[int],
    sources: MutableSequence[int],
) -> tuple[int, int, int]:
    """Decide what every rank loads: return the iteration, the tier's code and the heaviest load.

    Memory, if it holds all shards of an iteration that is as new as the persistent one: from each
    rank's own memory if none is lost, else from peers (`assign_sources`). Else the persistent
    checkpoint, if there is one; else the start, iteration 0. Costs O(lost_count * m).

    Args:
        memory_iteration: the newest iteration of memory that is as safe as any (`newest_safe`).
            Where a checkpoint becomes whole on all machines at one moment, as in the simulator's
            model, that is the last one: no other has a copy that it lacks.
        most_held: of the machines that lost nothing, what they hold of it; `NOTHING`: memory has
            no checkpoint.
        storage_iteration: the newest complete persistent checkpoint; `NO_ITERATION`: none.
        lost: ranks whose own copy is gone; the first `lost_count` entries count.
        lost_count: how many.
        replicas: see `assign_sources`, as for the rest.
        memory_state: likewise.
        load: likewise.
        sources: likewise.

    Both twins call this very object: the runtime by way of `plan_recovery`, the simulator's
    engines as it stands, and the sweep engine compiled.
    """
    if most_held != NOTHING and memory_iteration >= storage_iteration:
        if lost_count == 0:
            return memory_iteration, OWN_MEMORY, 0
        if most_held == WHOLE:
            heaviest = assign_sources(lost, lost_count, replicas, memory_state, load, sources)
            if heaviest > 0:
                return memory_iteration, PEER, heaviest
    if storage_iteration != NO_ITERATION:
        return storage_iteration, STORAGE, 0
    return 0, SCRATCH, 0


class Tier(StrEnum):
    """Where a shard comes from, fastest first."""

    OWN_MEMORY = "own_memory"
    PEER = "peer"
    STORAGE = "storage"
    SCRATCH = "scratch"


TIERS = (Tier.OWN_MEMORY, Tier.PEER, Tier.STORAGE, Tier.SCRATCH)
"""The tiers by their codes."""


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
    candidates = _held_of_all(placement, holdings)
    found = newest_safe([_copies(placement, holdings, one) for one in candidates])
    newest = candidates[found] if found >= 0 else NO_ITERATION
    holders = [
        [machine for machine in row if newest in holdings.get(machine, {}).get(rank, ())]
        for rank, row in enumerate(placement.replicas)
    ]
    # What the simulator says of a machine is known of each copy here: who lacks one is no holder.
    lost = [rank for rank, able in enumerate(holders) if able[:1] != [rank]]
    able = [(rank, *(peer for peer in row if peer != rank)) for rank, row in enumerate(holders)]
    sources = [0] * len(lost)
    iteration, tier, heaviest = choose(
        newest,
        WHOLE if found >= 0 else NOTHING,
        NO_ITERATION if persistent_iteration is None else persistent_iteration,
        lost,
        len(lost),
        able,
        [WHOLE] * placement.machines,
        [0] * placement.machines,
        sources,
    )
    peers = dict(zip(lost, sources, strict=True)) if tier == PEER else {}
    return RecoveryPlan(iteration, TIERS[tier], peers, heaviest)


def _held_of_all(
    placement: Placement, holdings: Mapping[int, Mapping[int, Collection[int]]]
) -> list[int]:
    """Return the iterations of which some machine holds each shard, oldest first."""
    candidates: set[int] | None = None
    for rank, row in enumerate(placement.replicas):
        held: set[int] = set()
        for machine in row:
            held.update(holdings.get(machine, {}).get(rank, ()))
        candidates = held if candidates is None else candidates & held
        if not candidates:
            break
    return sorted(candidates or ())


def _copies(
    placement: Placement, holdings: Mapping[int, Mapping[int, Collection[int]]], iteration: int
) -> list[bool]:
    """Say for each place of a copy whether it holds `iteration`."""
    return [
        iteration in holdings.get(machine, {}).get(rank, ())
        for rank, row in enumerate(placement.replicas)
        for machine in row
    ]
