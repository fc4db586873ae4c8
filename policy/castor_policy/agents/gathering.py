"""What is decided once every machine has said what it holds, and how long that is waited for.

Memory that serves never waits for storage: a machine says at once what its memory holds, and what
storage holds when storage has answered. What is not known yet is not "nothing":

1. While some iteration is whole in memory, it is loaded at once. A persistent checkpoint counts
   beside it (one that is newer than all that memory has whole) only if every machine has already
   said that it sees it.
2. If memory cannot serve, every machine's word on storage is waited for, for the job's `storage_s`.
3. A machine that has not read storage by then, when others have, is treated as lost.
4. If no machine has, the job is given up, with everything left as it is. It never starts from
   scratch because storage is slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Phase, Plan
from castor_policy.in_place import goes_on_in_place
from castor_policy.placement import Placement
from castor_policy.recovery import Tier, plan_recovery


def has_gathered(plan: Plan, report: AgentReport | None) -> bool:
    """Whether a machine has said what its memory holds in this generation."""
    return (
        report is not None
        and report.generation == plan.generation
        and report.state == State.GATHERED
    )


def claims_place(plan: Plan, report: AgentReport) -> bool:
    """Whether an agent speaks as one that has a place in this generation."""
    return report.generation == plan.generation and report.state != State.IDLE


def in_all_storage(reports: Sequence[AgentReport]) -> set[int] | None:
    """Return the persistent iterations that every machine sees; None while one has not read."""
    common: set[int] | None = None
    for report in reports:
        if report.persistent is None:
            return None
        seen = set(report.persistent)
        common = seen if common is None else common & seen
    return common


def decided(
    spec: JobSpec, placement: Placement, plan: Plan, reports: Sequence[AgentReport]
) -> Plan | None:
    """Return the plan that says what to load; None while storage has to be waited for.

    Args:
        spec: the job.
        placement: of the job.
        plan: in phase GATHER.
        reports: for each machine, all of them gathered.
    """
    holdings = {machine: _shards_whole_in(spec, report) for machine, report in enumerate(reports)}
    persistent = in_all_storage(reports)
    recovery = plan_recovery(placement, holdings, max(persistent or (), default=None))
    in_memory = recovery.tier in (Tier.OWN_MEMORY, Tier.PEER)
    if persistent is None and not in_memory:
        return None
    sources: list[tuple[int, ...]] = []
    for shard, row in enumerate(spec.replicas if in_memory else ()):
        able = [m for m in row if recovery.iteration in holdings[m].get(shard, ())]
        first = shard if shard in able else recovery.peers[shard]
        sources.append((first, *(m for m in able if m != first)))
    return replace(
        plan,
        phase=Phase.LOAD,
        iteration=recovery.iteration,
        tier=str(recovery.tier),
        sources=tuple(sources),
        addresses=tuple(report.address for report in reports),
        rendezvous=reports[0].rendezvous,
        in_place=goes_on_in_place(in_memory, sum(len(report.parked) for report in reports)),
        script=reports[0].script,
        waits_for="",
    )


@dataclass(frozen=True, slots=True)
class Awaited:
    """One life of an agent that has yet to do something: "gather", "storage", "plan", "start"."""

    machine: int
    incarnation: str
    generation: int
    step: str


def awaited(
    spec: JobSpec, plan: Plan, members: Sequence[AgentReport | None]
) -> dict[Awaited, float]:
    """Return who is waited for in this plan, each with its limit in seconds.

    In GATHER that a machine says what it holds; once all have, that it has read storage. In LOAD
    that it takes the plan up, and that its trainers come up: longer than they have for it by their
    own agent's watch, which then says so by itself.
    """
    limits_s: dict[Awaited, float] = {}
    all_gathered = all(has_gathered(plan, report) for report in members)
    for machine, report in enumerate(members):
        if report is None:
            continue  # lost: its place is filled, or waits for a machine that was asked for
        limit_s: float | None = None
        step = ""
        if plan.phase == Phase.GATHER and not has_gathered(plan, report):
            failed = report.generation == plan.generation and report.state == State.FAILED
            limit_s, step = 0.0 if failed else spec.recovery.gather_s, "gather"
        elif plan.phase == Phase.GATHER and all_gathered and report.persistent is None:
            limit_s, step = spec.persistence.storage_s, "storage"
        elif plan.phase == Phase.LOAD and (
            report.generation != plan.generation or report.state == State.GATHERED
        ):
            limit_s, step = spec.recovery.gather_s, "plan"
        elif plan.phase == Phase.LOAD and report.state == State.LOADING and not report.standing:
            limit_s, step = spec.limits.startup_s + spec.recovery.gather_s, "start"
        if limit_s is not None:
            one = Awaited(machine, report.incarnation, plan.generation, step)
            limits_s[one] = limit_s
    return limits_s


def storage_silent(spec: JobSpec) -> str:
    """Return why a job ends whose memory and storage both cannot serve."""
    told = spec.persistence
    return (
        f"persistent storage {', '.join(told.tiers)} did not answer any machine for "
        f"{told.storage_s:g} s, and memory does not hold every part: repair the storage and start "
        "the job again; nothing was removed"
    )


def _shards_whole_in(spec: JobSpec, report: AgentReport) -> dict[int, set[int]]:
    whole: dict[int, set[int]] = {}
    for shard in sorted({int(rank) // spec.ranks_per_machine for rank in report.holdings}):
        held = [set(report.holdings.get(str(rank), ())) for rank in spec.ranks_of(shard)]
        common = set.intersection(*held)
        if common:
            whole[shard] = common
    return whole
