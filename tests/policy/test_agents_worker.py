"""The worker, rule by rule: what it does on each event, and in which order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.effects import (
    Campaign,
    DiscardOtherIterations,
    Exit,
    Fetch,
    Finalise,
    Forget,
    Inspect,
    Log,
    Offer,
    Persist,
    PingPeers,
    Redundant,
    Report,
    StartTrainers,
    StopTrainers,
    Verify,
    WorkerEffect,
)
from castor_policy.agents.events import (
    Fetched,
    FetchFailed,
    Finalised,
    Inspected,
    MemoryRefused,
    PeersAnswered,
    PersistChanged,
    PlanChanged,
    Progressed,
    RootChanged,
    SessionLost,
    SessionOpened,
    SessionRenewed,
    StoreLost,
    Tick,
    TrainerEnded,
    TrainerHung,
    TrainerRefused,
    TrainerResumed,
    Verified,
    WorkerEvent,
)
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.store_contact import STANDBY_CAMPAIGN_S
from castor_policy.agents.worker import MOST_PROGRESS_PER_S, REPORT_PROGRESS_S, Worker
from castor_policy.membership import WatchLimits
from castor_policy.placement import place
from castor_records.events.failures import Retrieved

NAMES = ("node-0", "node-1", "node-2", "node-3")


def job(ranks_per_machine: int = 1, replicas: int = 2) -> JobSpec:
    rows = place("mixed", 4, replicas).replicas
    return JobSpec(
        "j", 4, ranks_per_machine, "group", rows, "train.py", limits=WatchLimits(lease_s=4.0)
    )


def gather(generation: int = 1, agents: tuple[str, ...] = NAMES) -> Plan:
    return Plan(generation, 7, Phase.GATHER, agents, tuple(f"{name}.1" for name in agents))


def load(generation: int = 1, tier: str = "own_memory", iteration: int = 5) -> Plan:
    rows = place("mixed", 4, 2).replicas if tier in ("own_memory", "peer") else ()
    return replace(
        gather(generation),
        phase=Phase.LOAD,
        tier=tier,
        iteration=iteration,
        sources=rows,
        addresses=tuple(f"{name}:1" for name in NAMES),
    )


def worker(spec: JobSpec | None = None, *, standby: bool = False, name: str = "node-0") -> Worker:
    made = Worker(spec or job(), name, f"{name}.1", f"{name}:1", standby, 0.0)
    made.handle(SessionOpened(None), 0.0)
    return made


def told(made: Worker, *events: WorkerEvent, now_s: float = 1.0) -> list[WorkerEffect]:
    """Feed events and return the effects, logs left out."""
    effects = [effect for event in events for effect in made.handle(event, now_s)]
    return [effect for effect in effects if not isinstance(effect, Log)]


def gathered(made: Worker, holdings: dict[int, tuple[int, ...]], generation: int = 1) -> None:
    told(made, PlanChanged(gather(generation), generation * 2))
    told(made, Inspected(generation, holdings, (), "node-0:99"))


def training(spec: JobSpec | None = None) -> Worker:
    made = worker(spec)
    gathered(made, dict.fromkeys(made.spec.ranks_held_by(0), (5,)))
    told(made, PlanChanged(load(), 3))
    for rank in made.spec.ranks_of(0):
        told(made, Verified(1, rank, intact=True), TrainerResumed(1, rank))
    assert made.report.state == State.RUNNING
    return made


# ---- the plan ------------------------------------------------------------------------------------


def test_gather_kills_trainers_before_it_looks_at_memory_and_reports_what_is_there() -> None:
    made = worker()
    assert told(made, PlanChanged(gather(), 2)) == [StopTrainers(), Inspect(1, 0)]
    (report,) = told(made, Inspected(1, {1: (4, 5), 0: (5,)}, (3,), "node-0:99"))
    assert isinstance(report, Report)
    assert report.report.state == State.GATHERED
    assert report.report.holdings == {"0": (5,), "1": (4, 5)}
    assert (report.report.persistent, report.report.rendezvous) == ((3,), "node-0:99")


def test_a_thorough_plan_is_gathered_thoroughly() -> None:
    plan = replace(gather(), thorough=True)
    assert told(worker(), PlanChanged(plan, 2))[1] == Inspect(1, 0, thorough=True)


def test_a_plan_that_is_read_again_changes_nothing() -> None:
    made = worker()
    told(made, PlanChanged(gather(), 2))
    assert told(made, PlanChanged(gather(), 2)) == []
    told(made, Inspected(1, {}, (), ""), PlanChanged(load(tier="scratch"), 3))
    assert told(made, PlanChanged(load(tier="scratch"), 3)) == []


@given(st.lists(st.sampled_from([gather(1), load(1), gather(2), load(2), gather(3)]), max_size=8))
def test_it_never_goes_back_to_an_older_plan(plans: list[Plan]) -> None:
    made = worker()
    newest = (0, 0)
    for revision, plan in enumerate(plans, 2):
        told(made, PlanChanged(plan, revision))
        told(made, Inspected(plan.generation, {}, (), ""))
        newest = max(newest, (plan.generation, int(plan.phase == Phase.LOAD)))
        assert made.plan is not None
        assert (made.plan.generation, int(made.plan.phase == Phase.LOAD)) == newest
        assert made.generation == newest[0]


def test_a_load_that_it_has_not_gathered_for_fails_and_starts_nothing() -> None:
    made = worker()
    effects = told(made, PlanChanged(load(), 2))
    assert effects[0] == StopTrainers()
    assert not any(isinstance(effect, StartTrainers) for effect in effects)
    assert (made.report.state, made.report.kind) == (State.FAILED, "start")


def test_who_lost_its_place_stops_its_trainers_and_gives_memory_back_once_it_is_decided() -> None:
    """While the others gather, what is here may be the last of it (invariant 17)."""
    made = training()
    taken = gather(2, ("spare-0", *NAMES[1:]))
    effects = told(made, PlanChanged(taken, 4))
    assert effects[0] == StopTrainers()
    assert Forget() not in effects
    assert (made.machine, made.report.state, made.report.holdings) == (None, State.IDLE, {})
    assert told(made, TrainerEnded(1, 0, -9), PlanChanged(taken, 4)) == []
    decided = replace(load(), generation=2, agents=taken.agents, incarnations=taken.incarnations)
    assert told(made, PlanChanged(decided, 5)) == [Report(made.report), Forget()]
    assert told(made, PlanChanged(decided, 5)) == []


def test_who_sees_that_a_generation_loads_says_so_once_whatever_becomes_of_it() -> None:
    """Seeds 12603 and 3817 of `castor explore`: a store went back, and nobody told."""
    made = worker()
    elsewhere = replace(load(), agents=("node-7", *NAMES[1:]), incarnations=("x", "i1", "i2", "i3"))
    assert told(made, PlanChanged(replace(elsewhere, phase=Phase.GATHER), 2)) == []
    (again,) = told(made, SessionOpened(None, 0.0))
    assert isinstance(again, Report)
    assert (again.report.load_seen, again.report.plan_seen) == (0, 1)
    report, _ = told(made, PlanChanged(elsewhere, 3))
    assert isinstance(report, Report)
    assert (report.report.load_seen, report.report.generation) == (1, 0)
    told(made, PlanChanged(gather(2), 4))
    gathered(made, {}, generation=2)
    assert (made.report.load_seen, made.report.generation) == (1, 2)
    assert made.report.plan_seen == 2


def test_what_an_earlier_life_left_is_told_at_once_and_kept_until_it_is_decided() -> None:
    left = {0: (7, 8), 1: (8,)}
    made = Worker(job(), "node-9", "1", "h:1", False, 0.0, left=left)
    assert (made.report.holdings, made.report.generation) == ({"0": (7, 8), "1": (8,)}, 0)
    assert told(made, PlanChanged(gather(7), 2)) == []
    seen, forget, report = told(made, PlanChanged(replace(load(), generation=7), 3))
    assert isinstance(seen, Report)
    assert forget == Forget()
    assert isinstance(report, Report)
    assert report.report.holdings == {}


def test_a_place_is_a_lifes_not_a_names() -> None:
    made = worker()
    other_life = replace(gather(), incarnations=("node-0.0", *gather().incarnations[1:]))
    assert told(made, PlanChanged(other_life, 2)) == []
    assert made.machine is None


@pytest.mark.parametrize(
    ("phase", "code"), [(Phase.FINISHED, 0), (Phase.FAILED, 1), (Phase.STOPPED, 93)]
)
def test_the_end_of_the_job_ends_trainers_then_the_agent(phase: Phase, code: int) -> None:
    over = replace(load(), phase=phase, reason="so")
    stop, leave = told(training(), PlanChanged(over, 4))
    assert stop == StopTrainers()
    assert isinstance(leave, Exit)
    assert leave.code == code


def test_an_agent_that_comes_back_after_its_place_was_given_away_forgets_once() -> None:
    # castor explore, seed 3122: its old copies made an older iteration look the safer one.
    made = worker()
    elsewhere = replace(load(), agents=("node-7", *NAMES[1:]), incarnations=("x", "i1", "i2", "i3"))
    assert told(made, PlanChanged(elsewhere, 3))[1:] == [Forget()]
    assert Forget() not in told(made, PlanChanged(replace(elsewhere, generation=9), 4))


def test_an_agent_that_comes_back_to_its_own_place_keeps_what_it_holds() -> None:
    made = worker()
    before = replace(load(), incarnations=("an earlier life", "i1", "i2", "i3"))
    assert told(made, PlanChanged(before, 3)) == [Report(made.report)]


# ---- parts ---------------------------------------------------------------------------------------


def test_own_parts_are_verified_before_they_are_offered() -> None:
    made = worker()
    gathered(made, {0: (5,), 1: (5,)})
    effects = told(made, PlanChanged(load(), 3))
    assert effects[:2] == [DiscardOtherIterations(5), StartTrainers(load(), 0)]
    assert Verify(1, 0, 5) in effects
    assert not any(isinstance(effect, Offer | Redundant) for effect in effects)
    offered = told(made, Verified(1, 0, intact=True))
    assert offered[:2] == [Offer(1, 0, 5, "own_memory"), Redundant(1)]
    assert made.report.redundant


def test_what_is_missing_is_fetched_own_parts_first_and_redundancy_waits_for_all() -> None:
    made = worker()
    gathered(made, {})
    effects = told(made, PlanChanged(load(tier="peer"), 3))
    fetches = [effect for effect in effects if isinstance(effect, Fetch)]
    assert fetches == [Fetch(1, 0, 5, (1,), ("node-1:1",), urgent=True)]
    assert told(made, Fetched(1, 0, (1,), 8, 0.1)) == [
        Offer(1, 0, 5, "peer"),
        Fetch(1, 1, 5, (1,), ("node-1:1",), urgent=False),
    ]
    assert told(made, Fetched(1, 1, (1,), 8, 0.1))[0] == Redundant(1)
    assert told(made, Fetched(1, 1, (1,), 8, 0.1)) == []


@pytest.mark.parametrize("found", [Verified(1, 0, intact=False), TrainerRefused(1, 0)])
def test_a_corrupt_part_is_fetched_and_without_a_source_the_generation_fails(
    found: WorkerEvent,
) -> None:
    made = worker()
    gathered(made, {0: (5,), 1: (5,)})
    told(made, PlanChanged(load(), 3))
    assert told(made, found) == [Fetch(1, 0, 5, (1,), ("node-1:1",), urgent=True)]
    told(made, FetchFailed(1, 0, "corrupt too"))
    assert (made.report.state, made.report.kind) == (State.FAILED, "corrupt")
    assert told(made, Fetched(1, 0, (1,), 8, 0.1)) == []


def test_a_replica_of_others_that_cannot_be_had_holds_nothing_up() -> None:
    made = worker()
    gathered(made, {0: (5,)})
    told(made, PlanChanged(load(), 3))
    verified = told(made, Verified(1, 0, intact=True))
    assert verified[-1] == Fetch(1, 1, 5, (1,), ("node-1:1",), urgent=False)
    assert told(made, FetchFailed(1, 1, "gone"))[0] == Redundant(1)


def loaded_from(sources: tuple[tuple[int, ...], ...]) -> tuple[Worker, list[WorkerEffect]]:
    """Return the worker of machine 0 of four that all hold everything, and what it fetches."""
    made = worker(job(replicas=4))
    gathered(made, {})
    effects = told(made, PlanChanged(replace(load(tier="peer"), sources=sources), 3))
    return made, [effect for effect in effects if isinstance(effect, Fetch)]


def test_all_holders_are_asked_at_once_and_all_that_sent_are_named() -> None:
    made, fetches = loaded_from(((1, 2, 3), (1, 2, 3), (2, 1, 3), (3, 1, 2)))
    addresses = ("node-1:1", "node-2:1", "node-3:1")
    assert fetches == [Fetch(1, 0, 5, (1, 2, 3), addresses, urgent=True)]
    logged = [
        e.event for e in made.handle(Fetched(1, 0, (3, 1), 8, 0.1), 1.0) if isinstance(e, Log)
    ]
    retrieved = [event for event in logged if isinstance(event, Retrieved)]
    assert [(one.source, one.source_machine) for one in retrieved] == [("peer:node-3,node-1", 3)]


def test_a_holder_that_another_rank_waits_for_is_asked_when_the_others_have_failed() -> None:
    # Machine 3 is lost, too, and fetches from 2.
    made, fetches = loaded_from(((1, 2), (1, 2), (2, 1), (2, 1)))
    assert fetches == [Fetch(1, 0, 5, (1,), ("node-1:1",), urgent=True)]
    later = Fetch(1, 0, 5, (2,), ("node-2:1",), urgent=True)
    assert told(made, FetchFailed(1, 0, "gone")) == [later]
    told(made, FetchFailed(1, 0, "gone too"))
    assert made.report.state == State.FAILED


@pytest.mark.parametrize("tier", ["storage", "scratch"])
def test_without_memory_every_replica_is_invalid_and_the_tier_is_offered_at_once(tier: str) -> None:
    made = worker(job(ranks_per_machine=2))
    gathered(made, {})
    effects = told(made, PlanChanged(load(tier=tier, iteration=0), 3))
    assert effects[0] == DiscardOtherIterations(None)
    offers = [effect for effect in effects if isinstance(effect, Offer)]
    assert offers == [Offer(1, 0, 0, tier), Offer(1, 1, 0, tier)]
    assert Redundant(1) in effects


# ---- trainers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (TrainerEnded(1, 0, -9), "signal"),
        (TrainerEnded(1, 0, 1, "boom"), "exit"),
        (TrainerEnded(1, 0, 1, "gone", lost_peer=True), "connection"),
        (TrainerEnded(1, 0, 0, left_early=True), "exit"),
        (TrainerHung(1, 0, "stands still"), "hang"),
        (MemoryRefused(1, "table"), "memory"),
    ],
)
def test_a_failure_is_reported_once_and_leaves_the_rest_to_the_root(
    event: WorkerEvent, kind: str
) -> None:
    made = training()
    (report,) = told(made, event)
    assert isinstance(report, Report)
    assert (report.report.state, report.report.kind) == (State.FAILED, kind)
    assert told(made, event) == []


def test_the_other_ranks_of_a_failed_machine_are_told_of_too_and_what_says_most_comes_first() -> (
    None
):
    """The rank that lost its connection to the one beside it may well be noticed sooner."""
    made = training(job(ranks_per_machine=2))
    told(made, TrainerEnded(1, 0, 1, "closed by peer", lost_peer=True))
    assert made.report.kind == "connection"
    (report,) = told(made, TrainerEnded(1, 1, -9))
    assert isinstance(report, Report)
    assert [(sight.rank, sight.kind) for sight in report.report.seen] == [
        (0, "connection"),
        (1, "signal"),
    ]
    assert (report.report.kind, report.report.reason) == (
        "signal",
        "rank 1 was killed by signal 9",
    )


def test_a_failure_says_how_far_training_had_come() -> None:
    made = training()
    told(made, Progressed(1, 8, 7))
    told(made, Progressed(1, 9, 8))  # within a second of the last report
    told(made, TrainerEnded(1, 0, -9))
    assert (made.report.iteration, made.report.complete) == (9, 8)


def test_the_end_of_every_rank_is_finalised_then_finished() -> None:
    made = training(job(ranks_per_machine=2))
    (first,) = told(made, TrainerEnded(1, 0, 0))
    assert isinstance(first, Report)
    assert first.report.ended == (0,)
    assert told(made, TrainerEnded(1, 1, 0))[-1] == Finalise(1)
    told(made, Finalised(1, 9))
    said = made.report
    assert (said.state, said.iteration, said.complete) == (State.FINISHED, 9, 9)


@given(st.integers(-1, 3))
def test_answers_to_another_generation_are_not_heard(generation: int) -> None:
    made = training()
    gathered(made, {0: (5,), 1: (5,)}, generation=4)
    before = made.report
    for event in (
        TrainerEnded(generation, 0, -9),
        TrainerHung(generation, 0, "old"),
        Verified(generation, 0, intact=False),
        Inspected(generation, {}, (), ""),
        Finalised(generation, 12),
    ):
        assert told(made, event) == []
    assert made.report == before


def test_progress_is_told_at_first_and_then_not_for_every_iteration() -> None:
    made = training()
    assert len(told(made, Progressed(1, 6), now_s=10.0)) == 1
    assert told(made, Progressed(1, 7), now_s=10.0 + REPORT_PROGRESS_S / 2) == []
    assert len(told(made, Progressed(1, 8), now_s=10.0 + REPORT_PROGRESS_S)) == 1
    assert told(made, Progressed(1, 8), now_s=100.0) == []
    assert made.report.iteration == 8


def test_progress_that_came_too_soon_to_be_told_is_told_by_a_tick() -> None:
    made = training()
    told(made, Progressed(1, 7, 6), now_s=10.0)
    assert told(made, Progressed(1, 8, 7), now_s=10.0 + REPORT_PROGRESS_S / 2) == []
    assert told(made, Tick(), now_s=10.0 + REPORT_PROGRESS_S * 0.9) == []
    (said,) = told(made, Tick(), now_s=10.0 + REPORT_PROGRESS_S)
    assert isinstance(said, Report)
    assert (said.report.iteration, said.report.complete) == (8, 7)
    assert told(made, Tick(), now_s=10.0 + 2 * REPORT_PROGRESS_S) == []


def test_however_many_machines_there_are_they_tell_their_progress_no_oftener() -> None:
    writes = []
    for machine in range(0, 1000, 50):
        made = training()
        made.spec, made.machine = replace(made.spec, machines=1000), machine
        made._resumed = {machine}
        for iteration in range(100):
            now_s = 10.0 + 0.5 * iteration
            if told(made, Progressed(1, 6 + iteration), now_s=now_s):
                writes.append(now_s)
    assert writes.count(10.0) == 20, "all say at once that they have begun"
    later = sorted(set(writes) - {10.0})
    assert max(writes.count(now_s) for now_s in later) <= 2, "and then not all together"
    assert len(writes) - 20 <= 20 * 50 * MOST_PROGRESS_PER_S / 1000 + 20


def test_a_persistent_iteration_is_written_only_if_it_is_yet_to_come() -> None:
    made = training()
    assert told(made, PersistChanged(5)) == []
    assert told(made, PersistChanged(9)) == [Persist(1, 9)]


# ---- the session ---------------------------------------------------------------------------------


def test_memory_of_a_machine_that_training_went_on_without_is_of_the_past() -> None:
    """Cut off while a standby was loaded in its place, then asked to fill another's."""
    made = worker()
    told(made, PlanChanged(replace(gather(3), loaded=("spare-0", *NAMES[1:])), 4))
    kept, report = told(made, Inspected(3, {0: (3, 4)}, (), "node-0:99"))
    assert kept == DiscardOtherIterations(None)
    assert isinstance(report, Report)
    assert (report.report.state, report.report.holdings) == (State.GATHERED, {})
    again = worker()
    told(again, PlanChanged(replace(gather(3), loaded=NAMES), 4))
    (report,) = told(again, Inspected(3, {0: (3, 4)}, (), "node-0:99"))
    assert isinstance(report, Report)
    assert report.report.holdings == {"0": (3, 4)}


def test_an_inspection_of_memory_that_was_forgotten_since_is_no_answer() -> None:
    """A place is taken and given back within one generation: only its last reading counts."""
    made = worker()
    told(made, PlanChanged(gather(2), 4))
    told(made, PlanChanged(gather(2, ("spare-0", *NAMES[1:])), 5))
    again = told(made, PlanChanged(gather(2), 6))
    (asked,) = [effect for effect in again if isinstance(effect, Inspect)]
    assert told(made, Inspected(2, {0: (5,)}, (), "node-0:99")) == []
    (report,) = told(made, Inspected(2, {}, (), "node-0:99", asked.asked))
    assert isinstance(report, Report)
    assert (report.report.state, report.report.holdings) == (State.GATHERED, {})


def test_what_was_planned_meanwhile_comes_before_the_report_of_a_new_session() -> None:
    made = training()
    told(made, SessionLost())
    effects = told(made, SessionOpened(gather(2, ("spare-0", *NAMES[1:]))))
    assert effects[0] == StopTrainers()
    reports = [effect for effect in effects if isinstance(effect, Report)]
    assert reports[-1].report.state == State.IDLE


def test_a_machine_that_trains_campaigns_at_once_a_standby_only_when_nobody_has() -> None:
    assert told(training(), RootChanged("")) == [Campaign()]
    spare = worker(standby=True, name="spare-0")
    told(spare, PlanChanged(load(), 3))
    assert told(spare, RootChanged(""), now_s=1.0) == []
    assert told(spare, Tick(), now_s=1.0 + STANDBY_CAMPAIGN_S) == [Campaign()]
    assert told(spare, RootChanged("node-1"), Tick(), now_s=9.0) == []


@pytest.mark.parametrize("event", [StoreLost(), SessionLost()])
def test_nobody_campaigns_without_the_store(event: WorkerEvent) -> None:
    made = training()
    told(made, event)
    effects = told(made, RootChanged(""), Tick(), now_s=1.1)
    assert not any(isinstance(effect, Campaign) for effect in effects)


def test_a_machine_cut_off_from_all_stops_its_trainers_once_its_lease_must_be_over() -> None:
    made = training()
    told(made, SessionRenewed(10.0), StoreLost(), now_s=10.0)
    assert told(made, Tick(), now_s=12.0) == [
        PingPeers({1: "node-1:1", 2: "node-2:1", 3: "node-3:1"})
    ]
    assert [type(effect) for effect in told(made, Tick(), now_s=13.9)] == [PingPeers]
    told(made, PeersAnswered({}), now_s=13.95)
    report, stop = told(made, Tick(), now_s=14.0)
    assert isinstance(report, Report)
    assert (report.report.state, report.report.kind) == (State.FAILED, "isolated")
    assert stop == StopTrainers()
    assert told(made, Tick(), now_s=15.0) == []


def test_peers_that_were_not_asked_are_not_held_for_silent() -> None:
    """Seed 30190 of `castor explore`: the store was down while the job began."""
    made = training()
    told(made, StoreLost(), now_s=100.0)
    gathered(made, {0: (5,), 1: (5,)}, generation=2)
    told(made, PlanChanged(load(2), 5), now_s=150.0)
    assert [type(effect) for effect in told(made, Tick(), now_s=150.0)] == [PingPeers]
    assert told(made, PeersAnswered({1: 2}), now_s=150.1) == []
    assert [type(effect) for effect in told(made, Tick(), now_s=151.9)] == [PingPeers]
    told(made, Tick(), now_s=152.2)
    assert made.report.kind == "isolated"


def test_an_outage_of_the_store_alone_stops_nothing() -> None:
    made = training()
    told(made, StoreLost(), now_s=10.0)
    now_s = 10.0
    for _ in range(200):
        now_s += 0.25
        effects = told(made, Tick(), now_s=now_s)
        assert all(isinstance(effect, PingPeers) for effect in effects)
        if effects:
            assert told(made, PeersAnswered({1: 1}), now_s=now_s) == []
    assert told(made, SessionRenewed(now_s), Tick(), now_s=now_s + 0.25) == []


def test_a_peer_with_a_newer_generation_ends_ours() -> None:
    made = training()
    told(made, StoreLost(), now_s=2.0)
    assert told(made, PeersAnswered({1: 1, 2: 1}), now_s=2.5) == []
    report, stop = told(made, PeersAnswered({1: 2}), now_s=3.0)
    assert isinstance(report, Report)
    assert (report.report.state, stop) == (State.FAILED, StopTrainers())


# ---- the documents -------------------------------------------------------------------------------


def test_documents_survive_the_store() -> None:
    report = AgentReport("a", "b", standby=True, address="c", holdings={"0": (1, 2)})
    for document in (job(2), load(), gather(), report):
        assert type(document).from_json(document.to_json()) == document


def test_documents_of_another_version_are_refused() -> None:
    with pytest.raises(ValueError, match="same version"):
        JobSpec.from_json(replace(job(), protocol=99).to_json())
    with pytest.raises(ValueError, match="expected a Plan"):
        Plan.from_json('{"generation":1,"colour":"red"}')


@given(st.integers(0, 3), st.integers(1, 3))
def test_a_machine_holds_its_own_ranks_first_and_each_shard_m_times(machine: int, per: int) -> None:
    spec = job(ranks_per_machine=per)
    held = spec.ranks_held_by(machine)
    assert held[:per] == list(spec.ranks_of(machine))
    everywhere = [rank for place_ in range(4) for rank in spec.ranks_held_by(place_)]
    assert all(everywhere.count(rank) == 2 for rank in range(4 * per))


def test_what_came_from_storage_is_redundant_only_once_a_checkpoint_is_complete() -> None:
    made = worker()
    gathered(made, {})
    told(made, PlanChanged(load(tier="storage", iteration=4), 3))
    assert not made.report.redundant
    told(made, Progressed(1, 5, agreed=4), now_s=10.0)
    assert not made.report.redundant
    told(made, Progressed(1, 6, agreed=5), now_s=10.1)
    assert made.report.redundant


def test_a_replica_that_cannot_be_had_leaves_the_machine_degraded_until_the_next_checkpoint() -> (
    None
):
    made = worker()
    gathered(made, {0: (5,)})
    told(made, PlanChanged(load(), 3), Verified(1, 0, intact=True))
    told(made, FetchFailed(1, 1, "gone"))
    assert not made.report.redundant
    told(made, Progressed(1, 7, agreed=6), now_s=10.0)
    assert made.report.redundant
