"""Whether a failure belongs to a machine or to the job, and which machines others replace.

A place may be filled by another machine, and the job goes on as if nothing had been: so whoever
cannot do its work is put aside, as long as what stops it has not stopped others too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.attempts import recurs_at_start
from castor_policy.agents.culprit import Verdict
from castor_policy.agents.evidence import GONE, Culprit, SightKind
from castor_policy.agents.gathering import decided
from castor_policy.agents.history import MOST_FAILURES, PastFailure, often_failed
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Plan
from castor_policy.placement import Placement

_CAUSE_LENGTH = 160

_OF_THE_MACHINE = frozenset(
    {
        *GONE,
        SightKind.AGENT,
        SightKind.SIGNAL,
        SightKind.EXIT,
        SightKind.HANG,
        SightKind.STALL,
        SightKind.LEFT,
    }
)
"""What is a failure of the machine on which it happened."""


def remembered(
    spec: JobSpec, history: Sequence[PastFailure], culprits: Sequence[Culprit], at_s: float
) -> tuple[PastFailure, ...]:
    """Return the failures that still count, these ones added.

    What happens to most machines at once is no machine's own: a bug in the script fails on all.

    Args:
        spec: the job.
        history: as it was.
        culprits: of the new failure.
        at_s: now, in seconds from the job's start by the clock on the wall.
    """
    named = {one.machine for one in culprits}
    common = 2 * len(named) > spec.machines if spec.machines > 2 else len(named) == spec.machines
    own = {
        one.agent: PastFailure(one.agent, at_s, one.cause[:_CAUSE_LENGTH])
        for one in culprits
        if one.kind in _OF_THE_MACHINE and one.agent
    }
    if common and (len(named) > 1 or any(one.kind == SightKind.EXIT for one in culprits)):
        own = {}
    recent = [one for one in history if at_s - one.at_s <= spec.recovery.set_aside_within_s]
    return (*recent, *own.values())[-MOST_FAILURES:]


def refused(plan: Plan, members: Sequence[AgentReport | None]) -> dict[int, str]:
    """Return the machines whose memory could not be taken while they gathered, and why."""
    return {
        machine: report.reason
        for machine, report in enumerate(members)
        if report is not None
        and report.generation == plan.generation
        and report.kind == SightKind.MEMORY
    }


def worn_out(
    spec: JobSpec,
    placement: Placement,
    plan: Plan,
    chosen: Plan,
    reports: Sequence[AgentReport],
    free: Sequence[AgentReport],
) -> dict[int, str]:
    """Return a machine that fails again and again, and why, if it can be spared.

    Another one takes its place, and without its memory as new an iteration would be loaded, or a
    newer one: no good replica is given up for it (invariant 17).

    Args:
        spec: the job.
        placement: of the job.
        plan: in phase GATHER.
        chosen: the plan that follows, with everything that is held.
        reports: for each machine, all of them gathered.
        free: agents that fill no machine.
    """
    after = spec.recovery.set_aside_after
    if all(often_failed(plan.failures, one.agent, after) for one in free):
        return {}
    for machine, name in enumerate(plan.agents):
        reason = often_failed(plan.failures, name, after)
        if reason:
            others = list(reports)
            others[machine] = replace(reports[machine], holdings={})
            without = decided(spec, placement, plan, others)
            if without is not None and without.iteration >= chosen.iteration:
                return {machine: reason}
    return {}


def unserved(plan: Plan, reports: Sequence[AgentReport]) -> tuple[int, ...]:
    """Return the machines that reached no source for a part of their own."""
    return tuple(
        plan.agents.index(report.agent)
        for report in reports
        if any(sight.kind == SightKind.FETCH for sight in report.seen)
    )


def unfit(
    spec: JobSpec,
    plan: Plan,
    verdict: Verdict,
    reports: Sequence[AgentReport],
    words: str,
    *,
    is_replaceable: bool,
) -> dict[int, str]:
    """Return the machines to put aside after a failure, with the reason for each.

    1. The parts do not fit into its memory, or are not its job's, and others have room for theirs.
    2. It reached no source twice, though all sources had gathered in between. Once may be a source
       that died.
    3. It alone fails with an error of its own before it ever completed an iteration in its place,
       and whoever filled the place before did not fail in the same words; or the job cannot begin
       because of it alone, and nobody else has failed so in its place.

    Args:
        spec: the job.
        plan: of the generation that failed.
        verdict: on it.
        reports: of its machines.
        words: what the failure said, see `recurring_words`.
        is_replaceable: another agent is free.
    """
    found: dict[int, str] = {}
    full = {one.machine: one.cause for one in verdict.culprits if one.kind == SightKind.MEMORY}
    if len(full) < spec.machines:
        found |= {m: cause for m, cause in full.items() if m in plan.fresh or is_replaceable}
    for machine in unserved(plan, reports):
        if machine in plan.fresh and machine in plan.unserved:
            report = next(one for one in reports if one.agent == plan.agents[machine])
            found[machine] = report.reason
    machines = {one.machine for one in verdict.culprits}
    exits = [one for one in verdict.culprits if one.kind == SightKind.EXIT]
    if is_replaceable and exits and len(machines) == 1 < spec.machines:
        one = exits[0]
        is_fresh = one.machine in plan.fresh
        if words != plan.words if is_fresh else recurs_at_start(plan, reports, words):
            found[one.machine] = one.cause
    return found
