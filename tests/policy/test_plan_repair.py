"""A store that lost the plan: what the root makes of what it and the others still know."""

from __future__ import annotations

from dataclasses import replace

import pytest

from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.effects import Log, Resign, RootEffect, WritePlan
from castor_policy.agents.events import PlanChanged, PlanLost, ReportChanged, Tick
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.office import Office
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.plan_repair import LOST, is_awaited, later, newest_generation, repaired
from castor_policy.agents.root import Root
from castor_policy.membership import WatchLimits

SPEC = JobSpec("j", 2, 1, "group", ((0, 1), (1, 0)), "s.py", limits=WatchLimits(lease_s=5.0))
NAMES = ("node-0", "node-1")


def plan(generation: int, phase: str = Phase.LOAD) -> Plan:
    return Plan(generation, 4, phase, NAMES, ("i0", "i1"), iteration=7, tier="own_memory")


def report(name: str, generation: int, state: str = State.RUNNING) -> AgentReport:
    return AgentReport(name, f"i{name[-1]}", False, "h:1", generation, state)


def reports(*generations: int, state: str = State.RUNNING) -> dict[str, AgentReport]:
    told = zip(NAMES, generations, strict=False)
    return {name: report(name, generation, state) for name, generation in told}


def test_the_later_plan_is_the_one_further_on() -> None:
    assert later(None, None) is None
    assert later(plan(1), None) == later(None, plan(1)) == plan(1)
    assert later(plan(2), plan(1)) == later(plan(1), plan(2)) == plan(2)
    assert later(plan(2, Phase.GATHER), plan(2)) == plan(2)


@pytest.mark.parametrize("standing", [None, plan(1), plan(3, Phase.GATHER)])
def test_the_plan_that_is_known_is_written_again_as_it_was(standing: Plan | None) -> None:
    assert repaired(standing, plan(3), reports(3, 3)) == plan(3)
    assert repaired(standing, plan(3), reports(2, 3)) == plan(3)
    assert repaired(standing, plan(3), {}) == plan(3)


def test_a_gathering_is_not_taken_up_again() -> None:
    """Seed 16 with a store that went back: it was loaded once more, by a root that had not seen."""
    mended = repaired(None, plan(3, Phase.GATHER), reports(3, 3, state=State.GATHERED))
    assert mended is not None
    assert (mended.generation, mended.phase) == (4, Phase.GATHER)
    standing, told = plan(3, Phase.GATHER), reports(3, 3, state=State.GATHERED)
    assert repaired(standing, plan(2), told) is None
    # Seed 456: nor the one of a backup, of which nobody can say what it came to.
    mended = repaired(standing, plan(2), told, is_backups=True)
    assert mended is not None
    assert mended.generation == 4
    assert repaired(plan(3), plan(2), told, is_backups=True) is None


def test_a_plan_that_stands_is_left_alone() -> None:
    for known in (None, plan(3), plan(2)):
        assert repaired(plan(3), known, reports(3, 2)) is None
    assert repaired(None, None, reports(3, 3)) is None


@pytest.mark.parametrize("standing", [None, plan(1), plan(2), plan(3, Phase.FAILED)])
def test_where_others_speak_of_a_later_plan_the_generation_after_it_begins(
    standing: Plan | None,
) -> None:
    mended = repaired(standing, plan(3), reports(3, 5))
    assert mended is not None
    assert (mended.generation, mended.phase, mended.reason) == (6, Phase.GATHER, LOST)
    assert (mended.agents, mended.incarnations) == (NAMES, ("i0", "i1"))


def test_who_has_seen_it_load_knows_of_more_than_a_gathering() -> None:
    gathering = plan(3, Phase.GATHER)
    assert repaired(gathering, None, reports(3, 3, state=State.GATHERED)) is None
    loading = {name: replace(one, load_seen=3) for name, one in reports(3, 3).items()}
    mended = repaired(None, gathering, loading)
    assert mended is not None
    assert mended.generation == 4
    # Be it a standby, which has no part in it: those who had may be lost.
    onlooker = replace(report("spare-0", 0, State.IDLE), load_seen=3)
    mended = repaired(gathering, None, {"spare-0": onlooker})
    assert mended is not None
    assert mended.generation == 4
    assert repaired(gathering, None, {"spare-0": replace(onlooker, load_seen=2)}) is None


def test_who_has_seen_a_plan_in_which_it_has_no_place_says_so() -> None:
    """Of those who were left one knew that a generation had begun, and had no part in it."""
    onlooker = {"spare-0": replace(report("spare-0", 0, State.IDLE), plan_seen=3)}
    assert newest_generation(onlooker) == 3
    for standing in (None, plan(2), plan(2, Phase.GATHER)):
        mended = repaired(standing, plan(2), onlooker)
        assert mended is not None
        assert mended.generation == 4
    assert repaired(plan(3, Phase.GATHER), None, onlooker) is None


def test_who_has_not_come_back_is_awaited_in_the_life_that_it_had() -> None:
    awaited = {"node-1": "i1", "spare-0": "i9"}
    assert is_awaited(plan(3), awaited, reports(3))
    assert not is_awaited(plan(3), awaited, reports(3, 3))
    assert is_awaited(plan(3), {"node-1": "i8"}, reports(3, 3)), "a backup's"
    assert not is_awaited(plan(3), {"spare-0": "i9"}, {}), "it fills no machine"
    assert not is_awaited(None, awaited, {})


# ---- the root ------------------------------------------------------------------------------------


def root(standing: Plan | None, known: Plan | None, *told: AgentReport, **more: object) -> Root:
    awaited = {name: f"i{name[-1]}" for name in NAMES}
    options: dict[str, object] = {"known": known, "awaited": awaited, "epoch": 1} | more
    return Root(SPEC, Office(4, standing, 9 if standing else 0, told, **options), 100.0)  # type: ignore[arg-type]


def told(made: Root, event: object, now_s: float) -> list[RootEffect]:
    effects = made.handle(event, now_s)  # type: ignore[arg-type]
    return [effect for effect in effects if not isinstance(effect, Log)]


def test_a_root_writes_the_lost_plan_once_all_have_come_back_and_trains_on() -> None:
    made = root(None, plan(3), report("node-0", 3))
    assert told(made, Tick(), 101.0) == [], "the other may be on its way"
    (write,) = told(made, ReportChanged("node-1", report("node-1", 3)), 102.0)
    assert write == WritePlan(4, plan(3), 0)
    assert told(made, Tick(), 103.0) == [], "one write at a time"
    assert told(made, PlanChanged(plan(3), 12), 104.0) == []
    assert told(made, Tick(), 200.0) == [], "and nothing needs to be done"


def test_who_does_not_come_back_within_its_lease_is_lost() -> None:
    made = root(None, plan(3), report("node-0", 3))
    assert told(made, Tick(), 104.9) == []
    assert told(made, Tick(), 105.0) == [WritePlan(4, plan(3), 0)]
    (write,) = told(made, PlanChanged(plan(3), 12), 105.1)
    assert isinstance(write, WritePlan)
    assert (write.plan.generation, write.plan.phase, write.after) == (4, Phase.GATHER, 12)
    assert write.plan.agents == ("node-0", "")


def test_a_backups_plan_is_written_over_with_the_newer_one() -> None:
    made = root(plan(1), plan(3), report("node-0", 3), report("node-1", 3))
    assert told(made, Tick(), 100.0) == [WritePlan(4, plan(3), 9)]


def test_a_root_that_knows_nothing_leaves_office_to_who_does() -> None:
    made = root(None, None, report("node-0", 0, State.IDLE), report("node-1", 3), awaited={})
    assert told(made, Tick(), 100.0) == [Resign(4)]
    assert told(made, Tick(), 130.0) == [], "once is enough"
    made.write_failed()
    assert told(made, Tick(), 131.0) == [Resign(4)]


def test_a_new_job_begins_as_ever() -> None:
    idle = [report(name, 0, State.IDLE) for name in NAMES]
    (write,) = told(root(None, None, *idle, awaited={}), Tick(), 100.0)
    assert isinstance(write, WritePlan)
    assert (write.plan.generation, write.after) == (1, 0)


def test_who_knew_no_other_store_than_one_that_was_away_waits_for_who_did() -> None:
    """Seed 47928 of `castor explore`: all but one who knew the plan were lost, and it came last."""
    idle = [report(name, 0, State.IDLE) for name in NAMES]
    made = root(None, None, *idle, awaited={}, epoch=0, was_away=True)
    assert told(made, Tick(), 104.9) == []
    (write,) = told(made, Tick(), 105.0)
    assert isinstance(write, WritePlan)
    assert write.plan.generation == 1
    made = root(None, None, *idle, awaited={}, epoch=0, was_away=True)
    assert told(made, ReportChanged("spare-0", report("spare-0", 2)), 104.9) == [Resign(4)]


@pytest.mark.parametrize("revision", [0, 15])
def test_a_plan_that_is_deleted_or_spoilt_is_written_again(revision: int) -> None:
    made = root(plan(3), plan(3), *reports(3, 3).values(), awaited={}, epoch=0)
    assert told(made, Tick(), 100.0) == []
    assert told(made, PlanLost(revision), 101.0) == [WritePlan(4, plan(3), revision)]


def test_a_failure_beside_the_loss_is_still_a_failure() -> None:
    failed = replace(report("node-1", 3), state=State.FAILED, kind="exit", reason="rank 1 died")
    made = root(None, plan(3), report("node-0", 3), failed)
    assert told(made, Tick(), 100.0) == [WritePlan(4, plan(3), 0)]
    made.handle(PlanChanged(plan(3), 12), 101.0)  # others may have seen more: a short window
    (write,) = told(made, Tick(), 120.0)
    assert isinstance(write, WritePlan)
    assert (write.plan.generation, write.plan.phase) == (4, Phase.GATHER)


def test_the_documents_of_a_thousand_machines_fit_into_one_request() -> None:
    """etcd takes 1.5 MiB at most."""
    machines = 1000
    rows = tuple((m, (m + 1) % machines) for m in range(machines))
    spec = JobSpec("a-job", machines, 8, "ring", rows, "/home/somebody/train.py")
    every = Plan(
        generation=9999,
        term=10**9,
        phase=Phase.LOAD,
        agents=tuple(f"host-{m}.cluster.example" for m in range(machines)),
        incarnations=("0123abcd",) * machines,
        reason="machine 0: rank 0 was killed by signal 9",
        sources=rows,
        addresses=("255.255.255.255:65535",) * machines,
    )
    for document in (spec, every):
        assert len(document.to_json()) < 1024 * 1024
