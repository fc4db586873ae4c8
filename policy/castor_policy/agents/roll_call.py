"""Counts of what a plan's machines say, kept up report by report: when the root has to look at all.

A look at all machines takes time that grows with their number, and a report comes from each of
them several times in a generation. Most reports decide nothing: one more machine has gathered, or
loads, or trains. So what each machine's report says is put into a few marks, the marks are counted,
and the root looks only where one report by itself, or a count, can change what it decides. Whatever
depends on time alone is decided at ticks; while all train, `is_calm` says that nothing does.

The root decides by the reports themselves, never by the counts; `validate` counts them anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.culprit import has_said_all, seen_by
from castor_policy.agents.evidence import AT_ONCE, SightKind, strength
from castor_policy.agents.gathering import has_gathered
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.plan_repair import known_generation
from castor_policy.agents.wishes import MOST_IN_VAIN


class Mark:
    """What the report of a machine says, as far as it may decide something."""

    LOST: Final = "lost"
    """No agent, or not the life that the plan names."""
    CURRENT: Final = "current"
    """It speaks of the plan's generation."""
    REFUSED: Final = "refused"
    """Its memory could not be taken."""
    GATHERED: Final = "gathered"
    READ: Final = "read"
    """It has gathered and knows what storage holds."""
    FAILED: Final = "failed"
    STRUCK: Final = "struck"
    """It saw what needs no other sight beside it."""
    SAID_ALL: Final = "said_all"
    """Nothing more is to come from it of this generation's failure."""
    GOES_ON: Final = "goes_on"
    """Its trainers show signs of life and have not finished."""
    TRAINS: Final = "trains"
    READY: Final = "ready"
    """Its trainers run and its replicas are there: it may hold, and a drained one may leave."""
    HELD: Final = "held"
    """Its trainers hold, as they were asked to."""
    PERSISTED: Final = "persisted"
    """It has seen the iteration that it holds at count in persistent storage."""
    IN_VAIN: Final = "in_vain"
    """No tier takes what it holds: it need not be waited for."""
    FINISHED: Final = "finished"


def marks(spec: JobSpec, plan: Plan, machine: int, report: AgentReport | None) -> frozenset[str]:
    """Return what is to be counted of one machine.

    Args:
        spec: the job.
        plan: that names who fills the machine.
        machine: its place.
        report: of the agent of that name; None: there is none.
    """
    if report is None or report.incarnation != plan.incarnations[machine]:
        return frozenset((Mark.LOST,))
    if report.generation != plan.generation:
        return frozenset()
    gathered, failed = has_gathered(plan, report), report.state == State.FAILED
    found = {
        Mark.REFUSED: report.kind == SightKind.MEMORY,
        Mark.GATHERED: gathered,
        Mark.READ: gathered and report.persistent is not None,
        Mark.FAILED: failed,
        Mark.STRUCK: failed and any(strength(s.kind) <= AT_ONCE for s in seen_by(report)),
        Mark.SAID_ALL: has_said_all(spec, report),
        Mark.GOES_ON: not report.standing and report.state != State.FINISHED,
        Mark.TRAINS: report.state == State.RUNNING and not report.standing,
        Mark.READY: report.state == State.RUNNING and report.redundant,
        Mark.HELD: report.held > 0,
        Mark.PERSISTED: report.held > 0 and report.persisted == report.held,
        Mark.IN_VAIN: report.in_vain >= MOST_IN_VAIN,
        Mark.FINISHED: report.state == State.FINISHED,
    }
    return frozenset((Mark.CURRENT, *(mark for mark, is_so in found.items() if is_so)))


class RollCall:
    """The counts of one root.

    Args:
        spec: the job.
        reports: of the live agents by name; the root's own, which it changes by `take` alone.

    Attributes:
        newest_iteration: that any machine has reported in the plan's generation.
        who_miss: the agents, spares too, that cannot reach one of those around them.
    """

    def __init__(self, spec: JobSpec, reports: dict[str, AgentReport]) -> None:
        self._spec = spec
        self._reports = reports
        self._plan: Plan | None = None
        self._places: dict[str, int] = {}
        self._marks: list[frozenset[str]] = []
        self._counts: Counter[str] = Counter()
        self.newest_iteration = 0
        self.who_miss = {name for name, report in reports.items() if report.unreached}
        self._checked = 0

    def follow(self, plan: Plan | None) -> None:
        """Count anew, for another plan."""
        self._plan = plan
        agents = plan.agents if plan is not None else ()
        self._places = {name: machine for machine, name in enumerate(agents) if name}
        self._marks = counted(self._spec, plan, self._reports)
        self._counts = Counter(mark for found in self._marks for mark in found)
        known = zip(agents, self._marks, strict=True)
        current = (self._reports[name] for name, found in known if Mark.CURRENT in found)
        self.newest_iteration = max((report.iteration for report in current), default=0)

    def take(self, agent: str, report: AgentReport | None, *, is_asked: bool = False) -> bool:
        """Take a report in; return whether the root has to look at all.

        What it says of a later generation than the plan's always counts: the plan is lost. So does
        a change of whom it cannot reach and, while anybody misses another, who could take a place.

        Args:
            agent: whose it is.
            report: it; None: it is gone.
            is_asked: something is asked for (`wishes`): that waits for what all machines say, and
                for somebody to take a place.
        """
        missed = self._put(agent, report)
        plan = self._plan
        if plan is None:
            return len(self._reports) >= self._spec.machines
        machine = self._places.get(agent)
        before = after = frozenset[str]()
        if machine is not None:
            before, after = self._count(plan, machine, report)
        # Once the job is over agents end one after the other, and miss each other.
        if (missed and not plan.is_over) or (report is not None and is_ahead(plan, report)):
            return True
        if plan.phase == Phase.GATHER and (machine is None or Mark.LOST in after):
            return self._counts[Mark.LOST] > 0  # it may fill a place
        if plan.phase == Phase.LOAD and machine is None:
            return is_asked or bool(self.who_miss)
        return before != after and self._decides(plan.phase, after - before, is_asked=is_asked)

    def _put(self, agent: str, report: AgentReport | None) -> bool:
        """Replace an agent's report; return whether it misses others than before."""
        before = self._reports.pop(agent, None)
        if report is not None:
            self._reports[agent] = report
        missed = report.unreached if report is not None else ()
        (self.who_miss.add if missed else self.who_miss.discard)(agent)
        return missed != (before.unreached if before is not None else ())

    def _decides(self, phase: str, new: frozenset[str], *, is_asked: bool) -> bool:
        if phase == Phase.GATHER:
            return self._decides_gathering(new)
        told = self._decides_training(new) or (is_asked and self._decides_what_is_asked(new))
        return phase == Phase.LOAD and told

    def _count(
        self, plan: Plan, machine: int, report: AgentReport | None
    ) -> tuple[frozenset[str], frozenset[str]]:
        """Count what a machine says in place of what it said; return what it said, and says."""
        before, after = self._marks[machine], marks(self._spec, plan, machine, report)
        if report is not None and Mark.CURRENT in after:
            self.newest_iteration = max(self.newest_iteration, report.iteration)
        self._marks[machine] = after
        for mark in before - after:
            self._counts[mark] -= 1
        for mark in after - before:
            self._counts[mark] += 1
        return before, after

    def _decides_gathering(self, new: frozenset[str]) -> bool:
        if new & {Mark.REFUSED, Mark.FAILED}:
            return True
        all_gathered = self._counts[Mark.GATHERED] == self._spec.machines
        all_read = self._counts[Mark.READ] == self._spec.machines
        return all_gathered and (Mark.GATHERED in new or all_read)

    def _decides_training(self, new: frozenset[str]) -> bool:
        counts, machines = self._counts, self._spec.machines
        if new & {Mark.LOST, Mark.STRUCK}:
            return True
        if Mark.FAILED in new and counts[Mark.FAILED] == 1:
            return True
        if counts[Mark.HELD] == machines:
            return True
        if counts[Mark.FAILED] and counts[Mark.SAID_ALL] == machines:
            return True
        return counts[Mark.CURRENT] == machines and not counts[Mark.GOES_ON]

    def _decides_what_is_asked(self, new: frozenset[str]) -> bool:
        of_all = (Mark.READY, Mark.PERSISTED)
        return Mark.IN_VAIN in new or any(
            one in new and self._counts[one] == self._spec.machines for one in of_all
        )

    @property
    def is_calm(self) -> bool:
        """Whether all machines train, or have finished: nothing is waited for, and none holds.

        And all reach those around them.
        """
        counts = self._counts
        in_training = counts[Mark.TRAINS] + counts[Mark.FINISHED] == self._spec.machines
        is_loaded = self._plan is not None and self._plan.phase == Phase.LOAD
        waits = counts[Mark.HELD] or self.who_miss
        return is_loaded and in_training and counts[Mark.TRAINS] > 0 and not waits

    def validate(self) -> None:
        """Check the marks of one machine against its report, of the next one each time.

        After the last one what is counted is checked, too: so it takes no longer where there are
        more machines.

        Raises:
            AssertionError: they differ.
        """
        plan, machines = self._plan, len(self._marks)
        if plan is None or not machines:
            return
        self._checked = (self._checked + 1) % machines
        report = self._reports.get(plan.agents[self._checked])
        found = marks(self._spec, plan, self._checked, report)
        assert self._marks[self._checked] == found, "a report was taken in, not counted"
        if self._checked == 0:
            counts = Counter(mark for one in self._marks for mark in one)
            assert +self._counts == counts, "the counts are not those of the marks"


def counted(
    spec: JobSpec, plan: Plan | None, reports: Mapping[str, AgentReport]
) -> list[frozenset[str]]:
    """Return the marks of each of a plan's machines."""
    agents = plan.agents if plan is not None else ()
    return [
        marks(spec, plan, machine, reports.get(name))
        for machine, name in enumerate(agents)
        if plan is not None
    ]


def is_ahead(plan: Plan, report: AgentReport) -> bool:
    """Whether a report knows of a later plan than this one: the store has lost it."""
    loads = plan.phase == Phase.GATHER and report.load_seen >= plan.generation
    return loads or known_generation(report) > plan.generation
