"""What the root does about what a job's user asks for, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.effects import (
    AskDrain,
    AskHold,
    AskPersist,
    Exit,
    GrantWishes,
    Hold,
    Log,
    RequestMachine,
    RootEffect,
    StopTrainers,
    WritePlan,
)
from castor_policy.agents.events import (
    HoldChanged,
    Inspected,
    LeaveAsked,
    PersistEnded,
    PlanChanged,
    ReportChanged,
    Tick,
    TrainerHeld,
    TrainerResumed,
    WishChanged,
)
from castor_policy.agents.evidence import sight_of_end
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.leaving import ASK_AGAIN_S
from castor_policy.agents.office import Office
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.resuming import resume, resumed
from castor_policy.agents.root import Root
from castor_policy.agents.store_writes import root_write
from castor_policy.agents.wish import Wish, WishKind
from castor_policy.agents.wish_progress import progress
from castor_policy.agents.wishes import ASK_AGAIN_S as ROOT_ASKS_AGAIN_S
from castor_policy.agents.wishes import (
    MOST_IN_VAIN,
    STOPPED_AT,
    refused_drain,
    refused_stop,
)
from castor_policy.agents.worker import Worker
from castor_policy.job_options import PersistenceOptions, TrafficOptions
from castor_policy.placement import place
from castor_policy.store import Compare, Delete
from castor_records.events.failures import Drained

TERM = 7
NAMES = tuple(f"node-{n}" for n in range(4))
LIVES = tuple(f"{name}.1" for name in NAMES)


def job(replicas: int = 2, **changes: object) -> JobSpec:
    rows = place("mixed", 4, replicas).replicas
    tiers = PersistenceOptions(tiers=("kept",))
    return JobSpec("j", 4, 1, "group", rows, "t.py", **({"persistence": tiers} | changes))


def plan(**changes: object) -> Plan:
    base = Plan(3, TERM, Phase.LOAD, NAMES, LIVES, iteration=5, sources=((0,),) * 4)
    base = replace(base, addresses=tuple(f"{name}:1" for name in NAMES))
    return replace(base, **changes)


def running(**changes: object) -> list[AgentReport]:
    return [
        replace(
            AgentReport(name, f"{name}.1", False, f"{name}:1", 3, State.RUNNING),
            iteration=9,
            complete=8,
            redundant=True,
            **changes,
        )
        for name in NAMES
    ]


def spare(name: str = "spare-0") -> AgentReport:
    return AgentReport(name, f"{name}.1", True, f"{name}:1")


def root(
    reports: Sequence[AgentReport], *wishes: Wish, of: Plan | None = None, **spec: object
) -> Root:
    standing = {wish.key("j"): wish for wish in wishes}
    office = Office(TERM, of or plan(), 20, reports, wishes=standing)
    return Root(job(**spec), office, 0.0)


def told(made: Root, now_s: float = 0.0) -> list[RootEffect]:
    return made.handle(Tick(), now_s)


def written(effects: Sequence[RootEffect]) -> WritePlan:
    (write,) = (one for one in effects if isinstance(one, WritePlan))
    return write


STOP = Wish(WishKind.STOP)
CHECKPOINT = Wish(WishKind.CHECKPOINT)
DRAIN = Wish(WishKind.DRAIN, "node-2", "node-2.1")


@pytest.mark.parametrize("of", [plan(), plan(phase=Phase.GATHER)])
def test_a_stop_is_one_write_whatever_the_job_is_doing(of: Plan) -> None:
    write = written(told(root(running(), STOP, of=of)))
    assert (write.plan.phase, write.plan.reached) == (Phase.STOPPED, 8)
    assert write.grants == (STOP.key("j"),)
    txn = root_write("j", "node-0", write)
    assert Delete(STOP.key("j")) in txn.operations
    assert Compare("/castor/j/root", create_revision=TERM) in txn.compares
    assert told(root(running(), STOP, of=plan(phase=Phase.FINISHED))) == []


def test_a_stop_that_comes_by_a_watch_is_heard() -> None:
    made = root(running())
    assert told(made) == []
    effects = made.handle(WishChanged(STOP.key("j"), STOP), 0.0)
    assert written(effects).plan.phase == Phase.STOPPED


def test_a_stop_at_a_checkpoint_holds_persists_and_ends() -> None:
    made = root(running(), CHECKPOINT)
    assert told(made) == [AskHold(TERM, 3)]
    assert told(made, 1.0) == []  # once is enough, for a while
    assert told(made, ROOT_ASKS_AGAIN_S) == [AskHold(TERM, 3)]
    held = running(held=11)
    for report in held[:3]:
        made.handle(ReportChanged(report.agent, report), 6.0)
    assert made.handle(ReportChanged("node-3", held[3]), 6.0) == [AskPersist(TERM, 11)]
    for report in held[:3]:
        made.handle(ReportChanged(report.agent, replace(report, persisted=11)), 7.0)
    last = replace(held[3], persisted=11)
    write = written(made.handle(ReportChanged("node-3", last), 7.0))
    assert (write.plan.phase, write.plan.reached) == (Phase.STOPPED, 11)
    assert write.plan.reason == STOPPED_AT
    assert write.grants == (CHECKPOINT.key("j"),)


def test_what_cannot_be_persisted_is_tried_again_and_then_at_the_next_checkpoint() -> None:
    made = root(running(held=11), CHECKPOINT)
    assert told(made) == [AskPersist(TERM, 11)]
    last = running(held=11)[3]
    for times in range(1, MOST_IN_VAIN):
        failed = replace(last, in_vain=times, persist_failure="no space")
        made.handle(ReportChanged("node-3", failed), ROOT_ASKS_AGAIN_S * times - 1.0)
        assert told(made, ROOT_ASKS_AGAIN_S * times) == [AskPersist(TERM, 11)]
    failed = replace(last, in_vain=MOST_IN_VAIN, persist_failure="no space")
    write = written(made.handle(ReportChanged("node-3", failed), 20.0))
    assert (write.plan.generation, write.plan.phase) == (4, Phase.GATHER)
    assert write.plan.agents == NAMES
    assert write.plan.attempts == 0
    assert write.grants == ()


def test_a_tier_that_fails_does_not_end_the_wait_for_one_that_is_slow() -> None:
    made = root(running(held=11), CHECKPOINT)
    for report in running(held=11, persist_failure="s3://bucket/x: cannot be reached"):
        made.handle(ReportChanged(report.agent, report), 0.0)
    asked = [told(made, ROOT_ASKS_AGAIN_S * times) for times in range(1, 100)]
    assert asked == [[AskPersist(TERM, 11)]] * 99


def test_a_drain_gives_the_place_to_a_standby_from_where_all_hold() -> None:
    made = root([*running(), spare()], DRAIN)
    assert told(made) == [AskHold(TERM, 3)]
    for report in running(held=11)[:3]:
        made.handle(ReportChanged(report.agent, report), 1.0)
    write = written(made.handle(ReportChanged("node-3", running(held=11)[3]), 1.0))
    after = write.plan
    assert (after.generation, after.phase, after.asked_for) == (4, Phase.GATHER, True)
    assert after.agents == ("node-0", "node-1", "spare-0", "node-3")
    assert (after.reached, after.attempts, after.loaded) == (11, 0, NAMES)
    assert write.grants == ()  # it stands until the replicas are there again
    logged = [one.event for one in made.handle(PlanChanged(after, 21), 1.1) if isinstance(one, Log)]
    assert logged[0] == Drained(generation=4, machine=2, agent="node-2", iteration=11)
    loaded = replace(after, phase=Phase.LOAD, iteration=11)
    made.handle(PlanChanged(loaded, 22), 1.2)
    members = [replace(one, generation=4, held=0) for one in running()]
    members[2] = replace(spare(), generation=4, state=State.RUNNING, redundant=True)
    effects: list[RootEffect] = []
    for report in members:
        effects += made.handle(ReportChanged(report.agent, report), 2.0)
    assert [one for one in effects if isinstance(one, GrantWishes)] == [
        GrantWishes(TERM, (DRAIN.key("j"),), 22)
    ]


def test_without_a_standby_a_drain_waits_and_a_machine_is_asked_for() -> None:
    made = root(running(), DRAIN)
    assert told(made) == [RequestMachine(TERM, "3-2")]
    assert "none is there" in progress(job(), plan(), {r.agent: r for r in running()}, DRAIN)
    effects = made.handle(ReportChanged("spare-0", spare()), 1.0)
    assert effects == [AskHold(TERM, 3)]


def test_who_is_drained_takes_its_place_again_if_its_standby_fails_before_it_has_loaded() -> None:
    gather = plan(
        generation=4,
        phase=Phase.GATHER,
        agents=("node-0", "node-1", "spare-0", "node-3"),
        incarnations=("node-0.1", "node-1.1", "spare-0.1", "node-3.1"),
        asked_for=True,
    )
    reports = [replace(one, generation=4, state=State.GATHERED) for one in running()]
    reports[2] = replace(reports[2], state=State.IDLE)
    write = written(told(root(reports, DRAIN, of=gather)))
    assert write.plan.agents == NAMES


@given(st.sets(st.sampled_from(range(4)), min_size=1), st.integers(0, 4))
def test_whoever_is_drained_at_once_every_shard_keeps_a_replica(
    asked: set[int], spares: int
) -> None:
    wishes = [Wish(WishKind.DRAIN, NAMES[n], LIVES[n]) for n in sorted(asked)]
    reports = [*running(held=11), *(spare(f"spare-{n}") for n in range(spares))]
    after = written(told(root(reports, *wishes))).plan
    gone = {n for n in range(4) if after.agents[n] != NAMES[n]}
    assert gone <= asked
    assert len(gone) <= spares
    assert all(set(row) - gone for row in job().replicas)
    if spares:
        assert gone


def test_who_holds_for_what_was_taken_back_goes_on() -> None:
    made = root(running(held=11), CHECKPOINT)
    told(made)
    write = written(made.handle(WishChanged(CHECKPOINT.key("j"), None), 1.0))
    assert (write.plan.generation, write.plan.agents) == (4, NAMES)
    assert write.plan.reached == 11


def test_a_failure_comes_first() -> None:
    reports = running(held=11)
    reports[0] = replace(
        reports[0], state=State.FAILED, kind="signal", seen=(sight_of_end(0, -9, ""),)
    )
    after = written(told(root([*reports, spare()], DRAIN))).plan
    assert after.agents == NAMES
    assert not after.asked_for


def test_what_cannot_be_is_refused_in_a_sentence_and_never_held_for() -> None:
    alone = job(replicas=1)
    assert "one replica" in refused_drain(alone)
    assert "no persistent tier" in refused_stop(job(persistence=PersistenceOptions()))
    none = TrafficOptions(scheme="none")
    assert "scheme none" in refused_drain(job(traffic=none, persistence=PersistenceOptions()))
    assert told(root([*running(), spare()], DRAIN, replicas=1)) == []
    assert told(root(running(), CHECKPOINT, persistence=PersistenceOptions())) == []


# ---- an agent ------------------------------------------------------------------------------------


def worker() -> Worker:
    return Worker(job(), "node-2", "node-2.1", "a:1", False, 0.0)


def trains() -> Worker:
    made = worker()
    made.handle(PlanChanged(plan(phase=Phase.GATHER), 1), 0.0)
    made.handle(Inspected(3, {2: (5,), 3: (5,)}, (), "a:2"), 0.0)
    made.handle(PlanChanged(plan(tier="scratch", iteration=0), 2), 0.0)
    made.handle(TrainerResumed(3, 2), 0.0)
    return made


def test_a_worker_has_its_trainers_hold_and_says_when_they_do() -> None:
    made = trains()
    assert made.handle(HoldChanged(2), 1.0) == []  # of a generation that is over
    assert made.handle(HoldChanged(3), 1.0) == [Hold(3)]
    made.handle(TrainerHeld(3, 2, 11), 2.0)
    assert (made.report.held, made.report.complete, made.report.persisted) == (11, 11, 0)
    made.handle(PersistEnded(11, ""), 2.5)  # in one tier, and there may be others
    assert made.report.persisted == 0
    made.handle(PersistEnded(11, "no space", in_vain=True), 2.6)
    made.handle(PersistEnded(9, "no space", in_vain=True), 2.7)  # nobody waits for that one
    assert (made.report.persisted, made.report.in_vain) == (0, 1)
    made.handle(PersistEnded(11, "", everywhere=True), 3.0)
    assert made.report.persisted == 11


def test_who_is_told_to_go_asks_until_it_is_heard_and_leaves_when_it_is_done() -> None:
    made = trains()
    (asked,) = made.handle(LeaveAsked(30.0), 1.0)
    assert isinstance(asked, AskDrain)
    assert asked.wish.life == ("node-2", "node-2.1")
    assert AskDrain(asked.wish) not in made.handle(Tick(), 1.5)
    assert AskDrain(asked.wish) in made.handle(Tick(), 1.0 + ASK_AGAIN_S)
    made.handle(WishChanged(asked.wish.key("j"), asked.wish), 4.0)
    others = plan(generation=4, agents=("node-0", "node-1", "s", "node-3"))
    made.handle(PlanChanged(replace(others, phase=Phase.GATHER), 3), 5.0)
    made.handle(PlanChanged(others, 4), 6.0)
    left = made.handle(WishChanged(asked.wish.key("j"), None), 7.0)
    assert left[0] == StopTrainers()
    assert isinstance(left[1], Exit)
    assert left[1].code == 93


def test_who_is_not_heard_in_time_leaves_all_the_same_and_who_has_no_place_at_once() -> None:
    made = trains()
    made.handle(LeaveAsked(30.0), 1.0)
    ends = [one for one in made.handle(Tick(), 31.0) if isinstance(one, Exit)]
    assert [one.code for one in ends] == [143]
    (_, end) = worker().handle(LeaveAsked(30.0), 1.0)
    assert isinstance(end, Exit)
    assert end.code == 93


# ---- resuming ------------------------------------------------------------------------------------


def test_a_stopped_job_begins_its_next_generation_with_whoever_comes() -> None:
    over = plan(phase=Phase.STOPPED, reached=11, trained=True)
    spec, following = resumed(job(), over)
    assert spec.resumes == 0
    assert (following.generation, following.begins_anew) == (4, True)
    made = Root(
        spec,
        Office(
            9, following, 30, [replace(one, generation=0, state=State.IDLE) for one in running()]
        ),
        0.0,
    )
    first = written(told(made)).plan
    assert (first.generation, first.phase, first.agents) == (4, Phase.GATHER, NAMES)
    assert (first.reason, first.reached) == ("resumed", 11)
    assert not first.begins_anew
    txn = resume(spec, following, 30, [STOP.key("j")])
    assert txn.compares == (Compare("/castor/j/plan", mod_revision=30),)
    assert Delete(STOP.key("j")) in txn.operations


def test_a_job_that_was_given_up_waits_for_the_memory_that_was_kept() -> None:
    spec, following = resumed(job(), plan(phase=Phase.FAILED))
    assert spec.resumes == 3
    free = [replace(one, generation=0, state=State.IDLE) for one in running()]
    made = Root(spec, Office(9, following, 30, free), 0.0)
    assert told(made) == []
    after = written(told(made, spec.recovery.gather_s)).plan
    assert (after.phase, after.generation) == (Phase.FAILED, 4)
