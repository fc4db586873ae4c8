"""What a root knows: the plan, who is there, whom it has given up, and what it has asked to write.

Whoever is elected begins with what the store holds (`Office`); what is added here is time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.effects import Log, RootEffect, WritePlan
from castor_policy.agents.evidence import SightKind
from castor_policy.agents.filling import Filling
from castor_policy.agents.gathering import claims_place
from castor_policy.agents.history import is_aside
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.neighbours import lost_early
from castor_policy.agents.office import Office
from castor_policy.agents.patience import UNREACHED, Patience
from castor_policy.agents.persist_rounds import PersistRounds
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.plan_repair import later
from castor_policy.agents.roll_call import RollCall
from castor_policy.agents.wishes import Wishes
from castor_policy.placement import Placement


class RootState:
    """One root during one term, without what it decides.

    Args:
        spec: the job.
        office: what it starts from.
        now_s: the driver's clock.
    """

    def __init__(self, spec: JobSpec, office: Office, now_s: float) -> None:
        self.spec = spec
        self.term = office.term
        self.plan = office.plan
        self.epoch = office.epoch
        self._known = office.known
        self._awaited = office.awaited
        self._backup_revision = office.backup_revision
        self._was_away = office.was_away
        self._resigned = False
        self._revision = office.revision
        self.reports = {report.agent: report for report in office.reports}
        self._must_look = True
        self.count_anew()
        self._placement = placement_of(spec)
        self._since_s = now_s
        self._pending: Plan | None = None
        self._untold: dict[Plan, list[Log]] = {}
        self._failed_since: tuple[int, float] | None = None
        self._patience = Patience()
        self._storage_overdue = False
        self._at_s = 0.0
        self._planned_s = float("-inf")
        self._filling = Filling(spec, office.term)
        self._persist_rounds = PersistRounds(spec, now_s)
        self._wishes = Wishes(spec, office.term, office.wishes)

    def count_anew(self) -> None:
        """Count all reports: at the beginning, and where this state is taken from a journal."""
        self._roll_call = RollCall(self.spec, self.reports)
        self._roll_call.follow(self.plan)

    def validate(self) -> None:
        """Check what must hold between any two events; for tests and for exploring.

        Raises:
            AssertionError: it does not.
        """
        plan, written = self.plan, self._pending
        if written is not None:
            assert written.term == self.term, "it writes in another root's term"
            assert plan is None or not written.is_before(plan), "it writes what is of the past"
            assert len(written.agents) == self.spec.machines, "a place is missing"
            taken = [name for name in written.agents if name]
            assert len(set(taken)) == len(taken), "an agent has two places"
        self._roll_call.validate()

    # ---- the plan, and what it has asked to write ----------------------------------------------

    def _shown(self, plan: Plan, revision: int, now_s: float) -> list[Log]:
        """Take in the plan that the store holds; return what is told of it, if it is its own."""
        self.plan, self._revision = plan, revision
        self._pending = None
        told = self._untold.get(plan, [])
        self._untold.clear()
        self._roll_call.follow(plan)
        self._planned_s = now_s
        return told

    def _lost(self, revision: int) -> None:
        """Take in that the store has no plan any more."""
        self._known = later(self.plan, self._known)
        self.plan, self._revision = None, revision
        self._pending = None
        self._roll_call.follow(None)

    def write_failed(self) -> None:
        """The store did not take the plan (unreachable); decide again at the next event."""
        self._pending = None
        self._resigned = False
        self._must_look = True

    def _write(
        self, plan: Plan, effects: Sequence[RootEffect] = (), grants: tuple[str, ...] = ()
    ) -> list[RootEffect]:
        """Have the plan written, and told of it what `effects` say only once the store holds it.

        A root that has been replaced, and does not know yet, decides nothing: it must not say that
        it did.
        """
        self._pending = replace(plan, term=self.term)
        self._untold[self._pending] = [
            replace(effect, at_s=self._at_s) for effect in effects if isinstance(effect, Log)
        ]
        others = [effect for effect in effects if not isinstance(effect, Log)]
        return [*others, WritePlan(self.term, self._pending, self._revision, grants)]

    # ---- who is there --------------------------------------------------------------------------

    def _give_up_unreached(self, plan: Plan) -> None:
        """Take for lost whom their neighbours have lost, before their leases end."""
        if not self._roll_call.who_miss:
            return
        empty = [m for m, report in enumerate(self._members(plan)) if report is None]
        takers = len(self._free_agents(plan, plan.agents))
        for machine in lost_early(self.spec, plan, self.reports, empty, takers):
            report = self.reports.get(plan.agents[machine])
            if report is not None:
                self._patience.give_up(report, UNREACHED)

    def _members(self, plan: Plan) -> list[AgentReport | None]:
        """Return for each machine its agent's report; None where it is lost."""
        return [self._member(plan, machine) for machine in range(self.spec.machines)]

    def _member(self, plan: Plan, machine: int) -> AgentReport | None:
        """Return the report of the agent that fills `machine`, in the life that the plan names."""
        report = self._live(plan.agents[machine])
        if report is None or report.incarnation != plan.incarnations[machine]:
            return None
        return report

    def _how_lost(self, agent: str) -> SightKind:
        if agent not in self.reports:
            return SightKind.LEASE
        if self._live(agent) is not None:
            return SightKind.AGENT
        unreached = self._patience.is_unreached(self.reports[agent])
        return SightKind.UNREACHED if unreached else SightKind.SILENT

    def _live(self, agent: str) -> AgentReport | None:
        """Return an agent's report, unless it has been silent for too long."""
        report = self.reports.get(agent)
        if report is None or self._patience.is_given_up(report):
            return None
        return report

    def _is_doubted(self, free: AgentReport) -> bool:
        """Whether somebody else is better to have in a place."""
        return self._patience.is_doubted(free) or self._wishes.is_leaving(free)

    def _free_agents(self, plan: Plan | None, taken: Sequence[str]) -> list[AgentReport]:
        """Live agents that fill no machine; with the job's script, ordinary ones, by name first.

        Last come those that have not said that they saw the newest generation load, as all do:
        where a lease has not ended yet, who does not may be dead. Who still speaks as one that
        has a place in the plan's generation has not heard that it was given away, and takes back
        what it said once it has: it is free when it says that it is idle.
        """
        aside, placed = plan.aside if plan is not None else (), frozenset(taken)
        free = [
            report
            for report in self.reports.values()
            if report.agent not in placed
            and not (plan is not None and claims_place(plan, report))
            and not self._patience.is_given_up(report)
            and not is_aside(aside, report.agent, report.incarnation)
        ]
        script = self.plan.script if self.plan is not None else ""
        loaded = self.plan.generation - (self.plan.phase == Phase.GATHER) if self.plan else 0
        return sorted(
            free,
            key=lambda one: (
                *(one.script != script, one.load_seen < loaded),
                *(one.standby, _natural(one.agent)),
            ),
        )


def placement_of(spec: JobSpec) -> Placement:
    """Return the job's placement as the value that all of `policy` reasons with."""
    return Placement(spec.placement, spec.replicas, (tuple(range(spec.machines)),))


def _natural(name: str) -> tuple[str, int, str]:
    stem = name.rstrip("0123456789")
    digits = name[len(stem) :]
    return stem, int(digits) if digits else -1, name
