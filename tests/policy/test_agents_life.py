"""One life of an agent: how its lease is kept, and which event goes to worker and root."""

from __future__ import annotations

from functools import partial

import pytest

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.beginning import BEGIN_WITHOUT_S
from castor_policy.agents.effects import Log, RequestMachine, Resign, StopTrainers, WritePlan
from castor_policy.agents.events import (
    ReportChanged,
    RootChanged,
    SessionLost,
    SessionOpened,
    SessionRenewed,
    StoreLost,
    Tick,
)
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.lease_keeping import (
    RETRY_S,
    GrantLease,
    LeaseKeeper,
    ReadAll,
    RenewLease,
)
from castor_policy.agents.life import AgentLife
from castor_policy.agents.office import Tenure
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.store_keys import plan_key, root_key
from castor_policy.agents.store_view import StoreView
from castor_policy.agents.worker import Worker
from castor_policy.membership import RENEWALS, WatchLimits
from castor_policy.store import KeyValue, LeaseLostError, StoreEvent, StoreUnavailableError
from castor_records.events.storing import RootElected

JOB = "job"
SPEC = JobSpec(JOB, 2, 1, "group", ((0, 1), (1, 0)), "train.py", limits=WatchLimits(lease_s=4.0))
GONE = LeaseLostError("gone")
SILENT = StoreUnavailableError("silent")


# ---- the lease -----------------------------------------------------------------------------------


def plan(generation: int = 1) -> Plan:
    return Plan(generation, 2, Phase.GATHER, ("a", "b"), ("a1", "b1"))


def opened(view: StoreView) -> LeaseKeeper:
    keeper = LeaseKeeper(SPEC, view)
    keeper.sent(1.0)
    assert keeper.answered(7) == []
    keeper.sent(2.0)
    keeper.answered(None)
    return keeper


def test_a_lease_counts_from_its_sending_and_only_after_all_was_read() -> None:
    view = StoreView(JOB, "a")
    keeper = LeaseKeeper(SPEC, view)
    assert keeper.step == GrantLease(0.0, SPEC.limits.lease_s)
    keeper.sent(1.0)
    assert keeper.answered(7) == []
    assert keeper.lease is None
    assert keeper.step == ReadAll(0.0)
    keeper.sent(2.0)
    view.read([KeyValue(plan_key(JOB), plan().to_json(), 3, 3, None)], 3)
    assert keeper.answered(None) == [SessionOpened(plan(), 1.0)]
    assert keeper.lease == 7
    assert keeper.step == RenewLease(0.0, 7)
    keeper.sent(3.0)
    assert keeper.answered(4.0) == [SessionRenewed(3.0)]
    assert keeper.step == RenewLease(SPEC.limits.lease_s / RENEWALS, 7)


def test_a_silent_store_ends_no_lease_and_a_lost_one_is_asked_for_again_at_once() -> None:
    keeper = opened(StoreView(JOB, "a"))
    assert keeper.answered(SILENT) == [StoreLost()]
    assert keeper.step == RenewLease(RETRY_S, 7)
    assert keeper.lease == 7
    assert keeper.answered(GONE) == [SessionLost()]
    assert keeper.lease is None
    assert keeper.step == GrantLease(0.0, SPEC.limits.lease_s)


@pytest.mark.parametrize("granted", [False, True])
def test_a_lease_that_nothing_was_read_under_is_not_used(granted: bool) -> None:
    keeper = LeaseKeeper(SPEC, StoreView(JOB, "a"))
    if granted:
        keeper.answered(7)
    assert keeper.answered(SILENT) == [StoreLost()]
    assert keeper.lease is None
    assert keeper.step == GrantLease(RETRY_S, SPEC.limits.lease_s)


def test_a_store_that_was_away_before_it_was_ever_read_may_have_held_more() -> None:
    view = StoreView(JOB, "a")
    opened(view)
    view.read([], 1)
    opened(view).answered(SILENT)
    assert not view.was_away, "what it held is known"
    late = StoreView(JOB, "a")
    LeaseKeeper(SPEC, late).answered(SILENT)
    late.read([], 1)
    late.change(StoreEvent(root_key(JOB), "a", 5, 5))
    late.begins_to_watch(late.to_watch)
    office = Tenure.seen_in(late).office
    assert office is not None
    assert office.was_away


def test_nothing_is_written_under_a_lease_from_before_the_store_lost_its_data() -> None:
    """Seed 81898 of `castor explore`: a root revoked the lease that its own key lived by."""
    view = StoreView(JOB, "a")
    view.read([], 20, cluster=1)
    keeper = opened(view)
    view.read([], 5, cluster=2)
    assert keeper.lease is None
    assert keeper.held == 7, "it ends with the agent, if not before"
    keeper.answered(4.0)  # renewed: the store knows it, from a backup
    assert keeper.step == GrantLease(0.0, SPEC.limits.lease_s)
    keeper.answered(8)
    assert keeper.lease is None
    keeper.answered(None)
    assert (keeper.lease, keeper.held, keeper.retired) == (8, 8, 7)


# ---- events --------------------------------------------------------------------------------------


def a_life(*, elected: bool) -> AgentLife:
    view = StoreView(JOB, "a")
    view.read([], 1)
    if elected:
        view.change(StoreEvent(root_key(JOB), "a", 5, 5))
        view.begins_to_watch(view.to_watch)
    return AgentLife(Worker(SPEC, "a", "a1", "a1", False, 0.0), partial(Tenure.seen_in, view))


def test_an_agent_is_root_from_when_its_key_is_seen_until_it_is_gone() -> None:
    life = a_life(elected=True)
    told = life.decide(RootChanged("a"), 0.0)
    assert [type(effect.event) for effect in told if isinstance(effect, Log)] == [RootElected]
    assert life.root is not None
    root = life.root
    assert life.decide(RootChanged("a"), 0.0) == []  # read again: the same term goes on
    assert life.root is root
    assert a_life(elected=False).decide(RootChanged("b"), 0.0) == []


def test_a_life_that_has_its_name_ends_the_term_that_an_earlier_one_has_left() -> None:
    """Else the job is without a root until the dead life's lease has ended."""
    view = StoreView(JOB, "a")
    view.read([KeyValue(root_key(JOB), "a", 3, 3, None)], 4)
    life = AgentLife(Worker(SPEC, "a", "a2", "a2", False, 0.0), partial(Tenure.seen_in, view))
    assert life.decide(RootChanged("a"), 0.0) == [Resign(3)]
    assert life.root is None
    view.change(StoreEvent(root_key(JOB), None, 0, 5))
    assert life.decide(RootChanged(""), 0.1) == []
    view.change(StoreEvent(root_key(JOB), "a", 6, 6))
    assert life.decide(RootChanged("a"), 0.2) == []
    assert life.root is None, "it has not read yet what a root must know"
    (again,) = view.begins_to_watch(view.to_watch)
    life.decide(again, 0.3)
    assert life.root is not None
    assert life.root.term == 6


def test_reports_are_the_roots_alone_and_ticks_go_to_both() -> None:
    life = a_life(elected=True)
    life.decide(RootChanged("a"), 0.0)
    report = AgentReport("b", "b1", False, "b1")
    assert life.obey(ReportChanged("b", report), 1.0) == []
    life.decide(ReportChanged("b", report), 1.0)
    assert life.root is not None
    assert life.root.reports == {"b": report}
    asked = life.decide(Tick(), BEGIN_WITHOUT_S)
    assert [type(effect) for effect in asked] == [RequestMachine]


def test_the_root_decides_whatever_holds_its_own_machine_up() -> None:
    life = a_life(elected=True)
    life.decide(RootChanged("a"), 0.0)
    for name in ("a", "b"):
        told = life.decide(ReportChanged(name, AgentReport(name, f"{name}1", False, "")), 0.0)
    write = told[-1]
    assert isinstance(write, WritePlan)
    life.root_write_ended(write, life.root, done=False)
    # Its worker has not been given anything: it may still carry out what came before.
    assert WritePlan in [type(effect) for effect in life.decide(Tick(), 0.0)]
    kinds = [type(effect) for effect in life.obey(SessionOpened(write.plan), 0.0)]
    assert kinds[0] is StopTrainers
    assert not {WritePlan, RequestMachine} & set(kinds)


@pytest.mark.parametrize(("done", "events"), [(True, []), (False, []), (None, [StoreLost()])])
def test_a_plan_that_was_not_taken_is_decided_again(done: bool | None, events: list[StoreLost]):
    life = a_life(elected=True)
    life.decide(RootChanged("a"), 0.0)
    for name in ("a", "b"):
        told = life.decide(ReportChanged(name, AgentReport(name, f"{name}1", False, "")), 0.0)
    write = told[-1]
    assert isinstance(write, WritePlan)
    assert life.root_write_ended(write, life.root, done) == events
    decided = [e for e in life.decide(Tick(), 1.0) if isinstance(e, WritePlan)]
    assert decided == ([] if done else [write])
