"""Nothing waits without a bound: silent machines, and storage that does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.effects import Log, Report, RequestMachine, RootEffect, WritePlan
from castor_policy.agents.events import Inspected, PlanChanged, ReportChanged, StorageRead, Tick
from castor_policy.agents.gathering import Awaited
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.office import Office
from castor_policy.agents.patience import Patience, serves
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.root import Root
from castor_policy.agents.worker import Worker
from castor_policy.job_options import PersistenceOptions, RecoveryOptions
from castor_policy.membership import WatchLimits
from castor_records.events.failures import Detected

SPEC = JobSpec(
    "job",
    2,
    1,
    "group",
    ((0, 1), (1, 0)),
    "train.py",
    persistence=PersistenceOptions(tiers=("/storage",), storage_s=20.0),
    recovery=RecoveryOptions(gather_s=10.0),
    limits=WatchLimits(startup_s=30.0),
)
PLAN = Plan(2, 5, Phase.GATHER, ("node-0", "node-1"), ("i-node-0", "i-node-1"))
HELD = {"0": (7,), "1": (7,)}


def told(name: str, **fields: object) -> AgentReport:
    base = AgentReport(name, f"i-{name}", False, f"{name}:1", generation=2, rendezvous="r:1")
    return replace(base, **fields)  # type: ignore[arg-type]  # fields of it


def gathered(name: str, persistent: tuple[int, ...] | None, *, held: bool = True) -> AgentReport:
    holdings = HELD if held else {}
    return told(name, state=State.GATHERED, holdings=holdings, persistent=persistent)


class Desk:
    """A root with a store that takes whatever it writes at once."""

    def __init__(self, plan: Plan, *reports: AgentReport) -> None:
        self.root = Root(SPEC, Office(5, plan, 1, reports), 0.0)
        self.now_s = 0.0
        self.revision = 1
        self.asked: list[str] = []

    def see(self, report: AgentReport) -> Plan | None:
        return self._written(self.root.handle(ReportChanged(report.agent, report), self.now_s))

    def wait(self, seconds: float) -> Plan | None:
        """Let time pass until the root writes a plan, but no longer than this."""
        for _ in range(round(seconds / 0.25)):
            self.now_s += 0.25
            if (plan := self._written(self.root.handle(Tick(), self.now_s))) is not None:
                return plan
        return None

    def _written(self, effects: list[RootEffect]) -> Plan | None:
        self.asked += [effect.request for effect in effects if isinstance(effect, RequestMachine)]
        for effect in effects:
            if isinstance(effect, WritePlan):
                self.revision += 1
                told = self.root.handle(PlanChanged(effect.plan, self.revision), self.now_s)
                logs = [event for event in told if isinstance(event, Log)]
                self.logged = [entry for entry in logs if isinstance(entry.event, Detected)]
                return effect.plan
        return None


# ---- machines that answer nothing ----------------------------------------------------------------


def test_a_machine_that_never_gathers_loses_its_place_to_a_standby() -> None:
    desk = Desk(PLAN, told("node-1", generation=1), told("spare-0", standby=True))
    assert desk.see(gathered("node-0", ())) is None
    assert desk.wait(9.5) is None
    plan = desk.wait(1.0)
    assert plan is not None
    assert plan.agents == ("node-0", "spare-0")
    assert [entry.event.how for entry in desk.logged] == ["silent"]


def test_who_was_given_up_may_fill_a_place_again_once_it_speaks() -> None:
    desk = Desk(PLAN, told("node-1", generation=1))
    desk.see(gathered("node-0", ()))
    assert desk.wait(9.5) is None
    emptied = desk.wait(1.0)
    assert emptied is not None
    assert emptied.agents == ("node-0", "")
    plan = desk.see(told("node-1", state=State.IDLE))
    assert plan is not None
    assert plan.agents == ("node-0", "node-1")


@pytest.mark.parametrize(
    ("state", "generation", "limit_s"),
    [(State.RUNNING, 1, 10.0), (State.GATHERED, 2, 10.0), (State.LOADING, 2, 40.0)],
    ids=["never takes the plan up", "never begins to load", "never comes up"],
)
def test_a_machine_that_never_trains_is_not_waited_for(
    state: State, generation: int, limit_s: float
) -> None:
    loading = replace(PLAN, phase=Phase.LOAD, sources=((0,), (1,)), tier="own_memory")
    silent = told("node-1", state=state, generation=generation)
    desk = Desk(loading, told("node-0", state=State.RUNNING), silent)
    assert desk.wait(limit_s - 0.5) is None
    plan = desk.wait(1.0)
    assert plan is not None
    assert (plan.generation, plan.phase, plan.agents) == (3, Phase.GATHER, ("node-0", ""))


def test_a_machine_that_failed_before_it_gathered_is_replaced_at_once() -> None:
    desk = Desk(PLAN, gathered("node-0", ()), told("spare-0", standby=True))
    plan = desk.see(told("node-1", state=State.FAILED, kind="memory", reason="too little"))
    assert plan is not None
    assert plan.agents == ("node-0", "spare-0")


def test_a_root_that_was_stopped_itself_has_not_waited() -> None:
    patience = Patience()
    one = Awaited(0, "i", 2, "gather")
    assert patience.wait(0.0, {one: 10.0}) == []
    assert patience.wait(3600.0, {one: 10.0}) == []
    late_s: Iterator[float] = (3600.0 + look / 4 for look in range(1, 100))
    assert next(at for at in late_s if patience.wait(at, {one: 10.0})) == 3609.0
    assert patience.wait(4000.0, {}) == []
    assert patience.wait(4000.5, {one: 10.0}) == []  # waited for anew


# ---- storage that does not answer ----------------------------------------------------------------


def test_memory_that_serves_never_waits_for_storage() -> None:
    """Case c08: one rank is killed, all is in memory, and storage hangs."""
    desk = Desk(PLAN, told("node-1", generation=1))
    assert desk.see(gathered("node-0", None)) is None
    plan = desk.see(gathered("node-1", None))
    assert plan is not None
    assert (plan.phase, plan.iteration, plan.tier) == (Phase.LOAD, 7, "own_memory")


def test_slow_storage_is_waited_for_where_memory_cannot_serve() -> None:
    desk = Desk(PLAN, gathered("node-1", None, held=False))
    assert desk.see(gathered("node-0", None, held=False)) is None
    assert desk.wait(15.0) is None
    assert desk.see(gathered("node-0", (4, 6), held=False)) is None
    plan = desk.see(gathered("node-1", (4,), held=False))
    assert plan is not None
    assert (plan.iteration, plan.tier) == (4, "storage")  # what both see


def test_storage_that_answered_nobody_ends_the_job_and_never_starts_it_from_scratch() -> None:
    desk = Desk(PLAN, gathered("node-1", None, held=False))
    assert desk.see(gathered("node-0", None, held=False)) is None
    assert desk.wait(19.5) is None
    plan = desk.wait(1.0)
    assert plan is not None
    assert plan.phase == Phase.FAILED
    assert "/storage did not answer any machine for 20 s" in plan.reason


def test_a_machine_that_cannot_read_what_others_read_is_replaced() -> None:
    desk = Desk(PLAN, gathered("node-1", None, held=False), told("spare-0", standby=True))
    assert desk.see(gathered("node-0", (6,), held=False)) is None
    assert desk.wait(19.5) is None
    plan = desk.wait(1.0)
    assert plan is not None
    assert plan.agents == ("node-0", "spare-0")


def test_two_machines_whose_storage_hangs_do_not_take_turns_for_ever() -> None:
    """Found by `castor explore`: each spoke once it had lost its place, and got the other's."""
    desk = Desk(PLAN, gathered("node-1", None, held=False), told("spare-0", standby=True))
    desk.see(gathered("node-0", (6,), held=False))
    assert desk.wait(20.5) is not None
    assert desk.see(told("node-1", state=State.IDLE)) is None
    assert desk.see(gathered("spare-0", None, held=False)) is None
    plan = desk.wait(20.5)
    assert plan is not None
    assert plan.agents == ("node-0", "node-1")  # it may be answered by now
    assert desk.asked == ["2-1"]  # or never
    assert desk.see(told("spare-0", state=State.IDLE)) is None
    assert desk.see(gathered("node-1", None, held=False)) is None
    assert desk.see(told("node-2", state=State.IDLE)) is None
    plan = desk.wait(20.5)
    assert plan is not None
    assert plan.agents == ("node-0", "node-2")


@pytest.mark.parametrize(("stuck_s", "kept"), [(0.0, True), (9.9, True), (10.0, False)])
def test_who_is_stuck_for_longer_than_a_machine_may_gather_gives_its_lease_up(
    stuck_s: float, *, kept: bool
) -> None:
    assert serves(SPEC, stuck_s) is kept


def test_a_worker_says_what_memory_holds_first_and_storage_when_it_has_answered() -> None:
    worker = Worker(SPEC, "node-0", "i-node-0", "node-0:1", False, 0.0)
    worker.handle(PlanChanged(PLAN, 1), 0.0)
    worker.handle(StorageRead(2, (3,)), 0.0)  # before its inspection: of nobody's asking
    assert worker.report.state != State.GATHERED
    [first] = worker.handle(Inspected(2, {0: (7,)}, None, "r:1"), 0.0)
    assert isinstance(first, Report)
    assert (first.report.holdings, first.report.persistent) == ({"0": (7,)}, None)
    assert AgentReport.from_json(first.report.to_json()) == first.report
    [later] = worker.handle(StorageRead(2, (3, 6)), 0.0)
    assert isinstance(later, Report)
    assert (later.report.state, later.report.persistent) == (State.GATHERED, (3, 6))
