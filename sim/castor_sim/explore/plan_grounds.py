"""Whether a plan follows from what its machines were found to hold (invariants 1, 5 and 17)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Plan
from castor_policy.recovery import Tier
from castor_sim.explore.checkpoint_model import newest_generation
from castor_sim.explore.invariants import Violation
from castor_sim.explore.roles import Agent


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a machine was found to hold in one generation."""

    holdings: Mapping[int, Sequence[int]]
    persistent: frozenset[int] | None
    foreign: str = ""
    """What of it is of another run, or was given up: no plan may rest on it."""


def is_known_to_nobody(plan: Plan, live: Iterable[Agent]) -> bool:
    """Whether no live agent can tell of a plan, or of its generation, by what it knows or holds."""
    return all(
        (newest is None or newest.is_before(plan))
        and newest_generation(agent.host.memory) < plan.generation
        for agent in live
        for newest in [agent.view.known_plan()]
    )


def check_gathered(spec: JobSpec, plan: Plan, gathered: Sequence[Gathered]) -> None:
    """Check a plan in phase LOAD against what each of its machines holds.

    Raises:
        Violation: it loads what is not there, or gives up what is.
    """
    _check_storage(plan, gathered)
    if plan.tier in (Tier.OWN_MEMORY, Tier.PEER):
        _check_offered(spec, plan, gathered)
        _check_copies(spec, plan, gathered)


def _check_storage(plan: Plan, gathered: Sequence[Gathered]) -> None:
    read = [found.persistent for found in gathered if found.persistent is not None]
    persistent = frozenset.intersection(*read) if read else frozenset()
    if len(read) == len(gathered):
        newest = max(persistent, default=0)
        if plan.iteration < newest:
            raise Violation(5, f"{name_of(plan)} though storage has iteration {newest}")
    elif plan.tier not in (Tier.OWN_MEMORY, Tier.PEER):
        raise Violation(5, f"{name_of(plan)} before every machine had read storage")
    if plan.tier == Tier.STORAGE and plan.iteration not in persistent:
        raise Violation(5, f"{name_of(plan)}, which not every machine sees: {sorted(persistent)}")


def _check_offered(spec: JobSpec, plan: Plan, gathered: Sequence[Gathered]) -> None:
    for shard, places in enumerate(plan.sources):
        for rank in spec.ranks_of(shard):
            for place in places:
                if plan.iteration not in gathered[place].holdings.get(rank, ()):
                    what = f"{name_of(plan)}: machine {place} is a source of shard {shard}"
                    raise Violation(1, f"{what}, but holds no such part of rank {rank}")


def _check_copies(spec: JobSpec, plan: Plan, gathered: Sequence[Gathered]) -> None:
    """Check that nobody drops an older replica for one that it does not have (17).

    Of a shard: where one of a machine's ranks alone has the older iteration, that is no copy.
    """
    for older in _recoverable(spec, gathered):
        for place, found in enumerate(gathered if older < plan.iteration else ()):
            for shard in spec.shards_held_by(place):
                held = [set(found.holdings.get(rank, ())) for rank in spec.ranks_of(shard)]
                whole = set.intersection(*held)
                if older in whole and plan.iteration not in whole:
                    what = f"{name_of(plan)}: machine {place} drops shard {shard} at {older}"
                    raise Violation(17, f"{what}, which every rank could load")


def _recoverable(spec: JobSpec, gathered: Sequence[Gathered]) -> set[int]:
    """Return the iterations of which some machine has each rank's part."""
    each = []
    for shard, row in enumerate(spec.replicas):
        whole: set[int] = set()
        for place in row:
            held = gathered[place].holdings
            parts = [set(held.get(rank, ())) for rank in spec.ranks_of(shard)]
            whole |= set.intersection(*parts)
        each.append(whole)
    return set.intersection(*each)


def name_of(plan: Plan) -> str:
    """Return which plan it is, for people."""
    return f"generation {plan.generation} {plan.phase.upper()} {plan.iteration} from {plan.tier}"
