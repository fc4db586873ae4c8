"""The first generation of a job, or of one that is resumed: who begins, and with what.

Enough machines must be there first. Where the memory of agents was kept, those are waited for that
hold it; a resumed job's generations go on counting, so that none is ever used twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.effects import Log
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.seating import newly_together

BEGIN_WITHOUT_S = 20.0
"""A standby fills a machine at the start only if no ordinary agent has come for so long."""


def first_generation(spec: JobSpec, plan: Plan | None, reports: Iterable[AgentReport]) -> int:
    """Return one that nothing in any machine's memory was written in, nor will have been.

    What is left there was written in generations before: by a run that goes on from it, or in a
    store that has lost all, with the agents who knew.

    Args:
        spec: the job.
        plan: of a job that is resumed; None: it is new.
        reports: of all agents.
    """
    left = max((one.left_generation for one in reports), default=0)
    return max(1 + spec.resumes, 1 + left, 0 if plan is None else plan.generation)


def first_plan(
    spec: JobSpec,
    term: int,
    generation: int,
    before: Plan | None,
    seated: Mapping[int, AgentReport],
) -> tuple[Plan, list[Log]]:
    """Return the plan that begins a job, and what is told of it.

    Args:
        spec: the job.
        term: of the root.
        generation: see `first_generation`.
        before: the plan by which the job was resumed; None: it is new, or resumed by its launcher.
        seated: who fills each machine.
    """
    plan = Plan(
        generation=generation,
        term=term,
        phase=Phase.GATHER,
        agents=tuple(report.agent for report in seated.values()),
        incarnations=tuple(report.incarnation for report in seated.values()),
        reason="start" if before is None and not spec.resumes else "resumed",
        reached=0 if before is None else before.reached,
        trained=before is not None and before.trained,
    )
    domains = {machine: report.domain for machine, report in seated.items()}
    return plan, newly_together(spec, generation, {}, domains)


def nothing_kept(spec: JobSpec, term: int, generation: int) -> Plan:
    """Return the plan of a job whose kept memory nobody has brought in time.

    To begin without it would be to give up what it holds.
    """
    nobody = ("",) * spec.machines
    reason = (
        f"no complete checkpoint is in the memory of the agents that came within "
        f"{spec.recovery.gather_s:g} s: start those that hold it, on their machines and "
        "by their names, and resume again; or start a new job"
    )
    return Plan(generation, term, Phase.FAILED, nobody, nobody, reason=reason)
