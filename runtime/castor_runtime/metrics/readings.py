"""What an agent reads of itself once a second, in its event loop, for whoever asks in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.plan import Phase, Plan


@dataclass(frozen=True, slots=True)
class Readings:
    """One reading.

    Attributes:
        at_s: the agent's steady clock: when its event loop last turned.
        version: of Castor.
        address: of its checkpoint server; "" before it listens.
        domain: what its machine fails with; "": unknown.
        plan: the newest that it knows; None: the job has not begun.
        report: what it says of itself; None: it has no name yet.
        machine: the place that it fills; None: it is a standby.
        is_root: whether it decides for the job.
        memory_bytes: checkpoint memory that it has taken.
        limit_bytes: most that its checkpoints may take; 0: what there is.
        part_bytes: size of each part that belongs here and is known, by rank.
        missing: ranks whose parts belong here, and of which no iteration is whole here.
    """

    at_s: float
    version: str
    address: str = ""
    domain: str = ""
    plan: Plan | None = None
    report: AgentReport | None = None
    machine: int | None = None
    is_root: bool = False
    memory_bytes: int = 0
    limit_bytes: int = 0
    part_bytes: Mapping[int, int] = field(default_factory=dict)
    missing: tuple[int, ...] = ()

    def not_ready(self, *, store_reachable: bool) -> str:
        """Return why this machine is not what the job counts on; "" if it is.

        A standby is ready when it can be called; a machine that trains, when its trainers do and
        every replica that belongs on it is there, or comes with the next checkpoint.
        """
        plan, report = self.plan, self.report
        if report is None:
            return "starting: the agent has not joined its job yet"
        if plan is None:
            return "waiting: the job has no plan yet; its agents are not all here"
        if plan.is_over:
            return _over(plan)
        if not store_reachable:
            return "the store does not answer: training goes on, but no failure can be recovered"
        if self.machine is None:
            return self._standby(plan, report)
        return self._trains(plan, report)

    def _standby(self, plan: Plan, report: AgentReport) -> str:
        own = (report.agent, report.incarnation)
        for one in plan.aside:
            if (one.agent, one.incarnation) == own:
                return f"set aside until this agent is started again: {one.reason}"
        return ""

    def _trains(self, plan: Plan, report: AgentReport) -> str:
        generation = f"generation {plan.generation}"
        starts = plan.generation == 1
        what = "starting" if starts else "recovering"
        why = f" after: {plan.reason}" if plan.reason and not starts else ""
        if plan.waits_for:
            return f"{generation} waits: {plan.waits_for}"
        if plan.phase == Phase.GATHER:
            empty = plan.agents.count("")
            return f"{what}: {generation} gathers, {empty} places are empty{why}"
        if report.generation != plan.generation or report.state == State.LOADING:
            return f"{what}: {generation} loads iteration {plan.iteration}{why}"
        if report.state != State.RUNNING:
            return f"its trainers are {report.state}: {report.reason or generation}"
        missing = f"degraded: replicas that belong here are still missing in {generation}{why}"
        return "" if report.redundant else missing


def _over(plan: Plan) -> str:
    said = f": {plan.reason}" if plan.reason and plan.phase != Phase.FINISHED else ""
    return f"the job is over, {plan.phase}{said}"
