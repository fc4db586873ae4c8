"""Which agent fills which machine: who holds the machine's parts already, then whoever is free.

What an agent found in its memory when it was started stands in its report while it is idle. A job
that goes on after all its agents have ended finds its parts again by that, whatever the agents'
names and order, and an empty machine is better filled by one that has kept its parts.

Where agents say what their machines fail with (a rack, a switch), the copies of a shard are kept
apart: the placement says which machines share a shard, and seats are given so that as few of them
as can be are in one failure domain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.effects import Log
from castor_policy.agents.job_spec import JobSpec
from castor_records.events.failures import CopiesTogether


def seats(
    spec: JobSpec,
    free: Sequence[AgentReport],
    empty: Sequence[int],
    domains: Mapping[int, str] | None = None,
) -> dict[int, AgentReport]:
    """Return who fills each of the `empty` machines, as far as there are agents.

    Args:
        spec: the job.
        free: agents that fill no machine, the preferred ones first.
        empty: machines that nobody fills, in the order in which they shall be filled.
        domains: of the machines that are filled, their agents' failure domains.
    """
    found: dict[int, AgentReport] = {}
    order = {machine: number for number, machine in enumerate(empty)}
    claims = [
        (-_held(spec, report, machine), order[machine], place, machine)
        for place, report in enumerate(free)
        for machine in _keepers(spec, report)
        if machine in order
    ]
    seated: set[int] = set()
    for held, _, place, machine in sorted(claims):
        if held < 0 and machine not in found and place not in seated:
            found[machine] = free[place]
            seated.add(place)
    left = [report for place, report in enumerate(free) if place not in seated]
    wanted = [machine for machine in empty if machine not in found]
    if any(report.domain for report in left):
        taken = {machine: report.domain for machine, report in found.items()}
        found |= _apart(spec, left, wanted, {**(domains or {}), **taken})
    else:
        found |= dict(zip(wanted, left, strict=False))
    return dict(sorted(found.items()))


def _apart(
    spec: JobSpec,
    free: Sequence[AgentReport],
    wanted: Sequence[int],
    domains: Mapping[int, str],
) -> dict[int, AgentReport]:
    """Seat agents so that machines that share a shard are in different domains, as far as it goes.

    One after the other, each beside as few as can be, and those who end up beside one of their own
    domain change places with whoever makes that better. Where the order in which they came does
    better, as where the placement was made for it, it stands. No agent of another script than the
    preferred one's is taken for it: training waits until all machines have the same.
    """
    beside = _sharing(spec)
    found = _swapped(wanted, _one_by_one(free, wanted, domains, beside), domains, beside)
    in_order = dict(zip(wanted, free, strict=False))
    if len({report.script for report in in_order.values()}) > 1:
        return found
    return min(found, _swapped(wanted, in_order, domains, beside), key=_together(spec, domains))


def _together(
    spec: JobSpec, domains: Mapping[int, str]
) -> Callable[[Mapping[int, AgentReport]], int]:
    def count(found: Mapping[int, AgentReport]) -> int:
        of_found = {machine: report.domain for machine, report in found.items()}
        return len(copies_together(spec, {**domains, **of_found}))

    return count


def _one_by_one(
    free: Sequence[AgentReport],
    wanted: Sequence[int],
    domains: Mapping[int, str],
    beside: Sequence[set[int]],
) -> dict[int, AgentReport]:
    """Seat agents one after the other, each beside as few of its own domain as can be."""
    left, found, filled = list(free), dict[int, AgentReport](), dict(domains)
    for machine in wanted[: len(left)]:
        script = left[0].script
        near = {one.domain: _near(machine, one.domain, filled, beside) for one in left}
        best = min(left, key=lambda one: (one.script != script, near[one.domain]))
        left.remove(best)
        found[machine], filled[machine] = best, best.domain
    return found


def _swapped(
    wanted: Sequence[int],
    seated: Mapping[int, AgentReport],
    domains: Mapping[int, str],
    beside: Sequence[set[int]],
) -> dict[int, AgentReport]:
    """Have agents change places for as long as that leaves fewer beside their own domain."""
    found, filled = dict(seated), dict(domains)
    filled |= {machine: report.domain for machine, report in seated.items()}

    def seat(machine: int, report: AgentReport) -> None:
        found[machine], filled[machine] = report, report.domain

    def near(machine: int) -> int:
        return _near(machine, filled[machine], filled, beside)

    def is_better_swapped(machine: int, other: int) -> bool:
        mine, its = found[machine], found[other]
        before = near(machine) + near(other)
        seat(machine, its)
        seat(other, mine)
        if near(machine) + near(other) < before:
            return True
        seat(machine, mine)
        seat(other, its)
        return False

    # Each swap leaves fewer in one domain, so that it ends.
    while any(
        is_better_swapped(machine, other)
        for machine in wanted
        if machine in found and near(machine)
        for other in wanted
        if other in found and other != machine
    ):
        pass
    return found


def _near(machine: int, domain: str, filled: Mapping[int, str], beside: Sequence[set[int]]) -> int:
    """Return how many that share a shard with a machine are in a domain."""
    return sum(filled.get(other) == domain != "" for other in beside[machine])


def copies_together(spec: JobSpec, domains: Mapping[int, str]) -> dict[int, str]:
    """Return the shards of which two copies are in one failure domain, and which one that is.

    Args:
        spec: the job.
        domains: of each machine that is filled, its agent's; "": it says none, and counts as its
            own.
    """
    found: dict[int, str] = {}
    for shard, row in enumerate(spec.replicas):
        named = [domains[machine] for machine in row if domains.get(machine)]
        twice = sorted(domain for domain in set(named) if named.count(domain) > 1)
        if twice:
            found[shard] = twice[0]
    return found


def newly_together(
    spec: JobSpec, generation: int, before: Mapping[int, str], after: Mapping[int, str]
) -> list[Log]:
    """Return what is to be told of a plan that seats copies together that were not before.

    Args:
        spec: the job.
        generation: of the plan.
        before: the failure domain of each machine that was filled.
        after: of each that the plan fills.
    """
    were, found = copies_together(spec, before), copies_together(spec, after)
    new = [shard for shard in found if shard not in were]
    if not new:
        return []
    domains = tuple(sorted({found[shard] for shard in new}))
    return [Log(CopiesTogether(generation=generation, shards=tuple(new), domains=domains))]


def _sharing(spec: JobSpec) -> list[set[int]]:
    """Return for each machine those that hold a copy of a shard that it holds too."""
    beside: list[set[int]] = [set() for _ in spec.replicas]
    for row in spec.replicas:
        for machine in row:
            beside[machine].update(other for other in row if other != machine)
    return beside


def kept_iteration(spec: JobSpec, reports: Sequence[AgentReport]) -> int:
    """Return the newest iteration of which idle agents hold every rank's part; 0 if there is none.

    Whether replicas can be fetched from where they are is decided later, on what is inspected.
    """
    whole: set[int] | None = None
    for rank in range(spec.machines * spec.ranks_per_machine):
        held = {i for report in reports for i in _left(report).get(str(rank), ())}
        whole = held if whole is None else whole & held
    return max(whole or (), default=0)


def holds_parts(report: AgentReport) -> bool:
    """Whether an idle agent holds complete parts that an earlier life has left."""
    return any(_left(report).values())


def _left(report: AgentReport) -> Mapping[str, tuple[int, ...]]:
    return report.holdings if report.state == State.IDLE else {}


def _keepers(spec: JobSpec, report: AgentReport) -> set[int]:
    """Return the machines that any part belongs on which an idle agent holds."""
    shards = {int(rank) // spec.ranks_per_machine for rank in _left(report)}
    return {machine for shard in shards for machine in spec.replicas[shard]}


def _held(spec: JobSpec, report: AgentReport, machine: int) -> int:
    """Return how many of the machine's parts the agent holds; its own ranks' count double."""
    own = spec.ranks_of(machine)
    held = _left(report)
    return sum(1 + (rank in own) for rank in spec.ranks_held_by(machine) if held.get(str(rank)))
