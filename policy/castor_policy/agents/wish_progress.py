"""How far a wish is, in a sentence: for whoever asked for it, and in a job's status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.wish import Wish, WishKind
from castor_policy.agents.wishes import held_by_all, refused_drain, refused_stop


def progress(
    spec: JobSpec, plan: Plan | None, reports: Mapping[str, AgentReport], wish: Wish
) -> str:
    """Return what a wish that stands waits for.

    Args:
        spec: the job.
        plan: as the store has it; None before the first.
        reports: of the live agents, by name.
        wish: it.
    """
    refused = {WishKind.DRAIN: refused_drain, WishKind.CHECKPOINT: refused_stop}
    if wish.kind == WishKind.STOP:
        told = "waits for a root" if reports else "waits for an agent"
    elif why := refused[WishKind(wish.kind)](spec):
        told = why
    elif plan is None or plan.phase != Phase.LOAD:
        told = "waits until the job trains"
    else:
        told = _while_it_trains(spec, plan, reports, wish)
    return told


def _while_it_trains(
    spec: JobSpec, plan: Plan, reports: Mapping[str, AgentReport], wish: Wish
) -> str:
    members = (reports.get(name) for name in plan.agents)
    current = [r for r in members if r is not None and r.generation == plan.generation]
    is_drain = wish.kind == WishKind.DRAIN
    if held := held_by_all(spec, current):
        return f"holds at iteration {held}" if is_drain else _persisting(spec, held, current)
    if not all(one.state == State.RUNNING and one.redundant for one in current):
        return "waits until all replicas are there"
    if is_drain and plan.machine_of(*wish.life) is None:
        return "has no place any more, and leaves"
    if is_drain and not _has_taker(plan, reports, wish):
        return "waits for a standby to take its place: none is there"
    return "waits for the next checkpoint, to hold there"


def _persisting(spec: JobSpec, held: int, current: Sequence[AgentReport]) -> str:
    written = sum(report.persisted == held for report in current)
    failed = next((f": {one.persist_failure}" for one in current if one.persist_failure), "")
    return f"persists iteration {held}: {written} of {spec.machines} machines say it counts{failed}"


def _has_taker(plan: Plan, reports: Mapping[str, AgentReport], wish: Wish) -> bool:
    free = [report for name, report in reports.items() if name not in plan.agents]
    return any(report.agent != wish.agent and report.script == plan.script for report in free)
