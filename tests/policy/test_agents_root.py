"""The root, rule by rule: what it writes on what it sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_policy.agents import root as root_module
from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.beginning import BEGIN_WITHOUT_S
from castor_policy.agents.effects import AskPersist, Log, RequestMachine, RootEffect, WritePlan
from castor_policy.agents.events import PlanChanged, ReportChanged, RootEvent, Tick
from castor_policy.agents.evidence import Sight, sight_of_end, strongest
from castor_policy.agents.filling import REQUEST_AGAIN_S, fill_every_s
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.office import Office
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.root import Root
from castor_policy.job_options import PersistenceOptions, RecoveryOptions
from castor_policy.placement import place
from castor_records.events.failures import Detected

NAMES = ("node-0", "node-1", "node-2", "node-3")
SPEC = JobSpec(
    "j",
    4,
    1,
    "group",
    place("mixed", 4, 2).replicas,
    "t.py",
    recovery=RecoveryOptions(max_attempts=2),
)
TERM = 7


def report(name: str, **fields: object) -> AgentReport:
    plain = AgentReport(name, f"{name}.1", name.startswith("spare"), f"{name}:1")
    return replace(plain, **fields)


def gather(generation: int = 1, agents: Sequence[str] = NAMES, **fields: object) -> Plan:
    lives = tuple(f"{name}.1" if name else "" for name in agents)
    return replace(Plan(generation, TERM, Phase.GATHER, tuple(agents), lives), **fields)


def loading(generation: int = 1, **fields: object) -> Plan:
    return replace(gather(generation), phase=Phase.LOAD, **{"iteration": 5, **fields})


def gathered(name: str, holdings: dict[str, tuple[int, ...]], **fields: object) -> AgentReport:
    told = {"generation": 1, "state": State.GATHERED, "rendezvous": f"{name}:99", **fields}
    return report(name, holdings=holdings, **told)


def running(generation: int = 1, iteration: int = 6) -> list[AgentReport]:
    told = {"generation": generation, "state": State.RUNNING, "iteration": iteration}
    return [report(name, complete=iteration, **told) for name in NAMES]


def saw(one: AgentReport, *seen: Sight) -> AgentReport:
    """The report of a machine that saw this fail."""
    most = strongest(seen)
    return replace(one, state=State.FAILED, kind=most.kind, reason=most.text(), seen=seen)


def lost_peer(rank: int) -> Sight:
    return sight_of_end(rank, 1, "closed by peer", lost_peer=True)


def all_but(machine: int, failed: AgentReport) -> list[AgentReport]:
    """One machine's report, and those of the others, whose ranks lost their connections."""
    reports = [saw(one, lost_peer(rank)) for rank, one in enumerate(running())]
    reports[machine] = failed
    return reports


def root(plan: Plan | None, reports: Sequence[AgentReport], spec: JobSpec = SPEC) -> Root:
    return Root(spec, Office(TERM, plan, 10 if plan else 0, reports), 0.0)


def told(made: Root, event: RootEvent | None = None, now_s: float = 1.0) -> list[RootEffect]:
    effects = made.handle(event if event is not None else Tick(), now_s)
    return [effect for effect in effects if not isinstance(effect, Log)]


def written(effects: Sequence[RootEffect]) -> Plan:
    (write,) = [effect for effect in effects if isinstance(effect, WritePlan)]
    assert write.term == write.plan.term == TERM
    return write.plan


# ---- the first generation ------------------------------------------------------------------------


def test_it_begins_with_ordinary_agents_in_the_order_of_their_numbers() -> None:
    names = ("node-10", "node-2", "spare-0", "node-1", "node-0")
    plan = written(told(root(None, [report(name) for name in names])))
    assert plan.agents == ("node-0", "node-1", "node-2", "node-10")
    assert (plan.generation, plan.phase) == (1, Phase.GATHER)


def test_it_waits_for_ordinary_agents_before_it_begins_with_a_standby() -> None:
    made = root(None, [report(name) for name in (*NAMES[:3], "spare-0")])
    assert told(made, now_s=BEGIN_WITHOUT_S - 1) == []
    assert written(told(made, now_s=BEGIN_WITHOUT_S)).agents[3] == "spare-0"


def test_it_asks_for_machines_that_never_came() -> None:
    """Seed 2194 of `castor explore`: three machines were lost before the first plan."""
    made = root(None, [report("node-0"), report("node-1")])
    wanted = [RequestMachine(TERM, "0-2"), RequestMachine(TERM, "0-3")]
    assert told(made, now_s=BEGIN_WITHOUT_S - 1) == []
    assert told(made, now_s=BEGIN_WITHOUT_S) == wanted
    assert told(made, now_s=BEGIN_WITHOUT_S + 1) == []
    assert told(made, now_s=BEGIN_WITHOUT_S + REQUEST_AGAIN_S) == wanted


# ---- one decision at a time ----------------------------------------------------------------------


def test_nothing_is_decided_until_the_store_shows_what_was_written() -> None:
    made = root(None, [report(name) for name in NAMES])
    (write,) = told(made)
    assert isinstance(write, WritePlan)
    assert write.after == 0
    assert told(made, ReportChanged("node-0", None)) == []
    assert told(made, PlanChanged(write.plan, 11)) != []
    assert told(made) == []


def test_what_was_decided_is_told_once_the_store_holds_it() -> None:
    """Of a machine that woke up as root, after another one had been elected, nothing is told."""
    made = root(loading(), running()[:3])
    first = made.handle(Tick(), 1.0, 101.0)
    (write,) = [effect for effect in first if isinstance(effect, WritePlan)]
    assert not any(isinstance(effect, Log) for effect in first)
    made.write_failed()
    again = made.handle(Tick(), 2.0, 102.0)
    assert not any(isinstance(effect, Log) for effect in again)
    others = replace(write.plan, term=TERM + 1)
    assert not any(isinstance(effect, Log) for effect in made.handle(PlanChanged(others, 11), 3.0))


def test_what_was_decided_is_told_with_the_time_at_which_it_was() -> None:
    made = root(loading(), running()[:3])
    (write,) = [e for e in made.handle(Tick(), 1.0, 101.0) if isinstance(e, WritePlan)]
    made.write_failed()  # no answer came, yet it had been carried out
    seen = made.handle(PlanChanged(write.plan, 11), 2.0, 102.0)
    told = [effect for effect in seen if isinstance(effect, Log)]
    assert [(type(log.event), log.at_s) for log in told] == [(Detected, 101.0)]
    later = made.handle(PlanChanged(write.plan, 12), 3.0, 103.0)
    assert not any(isinstance(effect, Log) for effect in later)


def test_a_write_without_an_answer_is_decided_again_on_the_same_plan() -> None:
    made = root(loading(), running()[:3])
    first = told(made)
    made.write_failed()
    assert told(made) == first
    (write,) = first
    assert isinstance(write, WritePlan)
    assert write.after == 10


def test_an_older_plan_that_comes_late_is_not_taken() -> None:
    made = root(loading(2), running(2))
    assert told(made, PlanChanged(gather(1), 9)) == []
    assert made.plan == loading(2)


@given(st.permutations(range(5)))
def test_whoever_is_elected_decides_the_same(order: list[int]) -> None:
    names = ("node-0", "node-1", "spare-0", "node-3", "node-4")
    reports = [report(name, generation=1, state=State.RUNNING) for name in names]
    usual = written(told(root(loading(), reports)))
    again = written(told(root(loading(), [reports[index] for index in order])))
    assert again == usual
    assert usual.agents == ("node-0", "node-1", "node-4", "node-3")


# ---- GATHER --------------------------------------------------------------------------------------


def test_it_decides_only_when_every_machine_has_gathered_in_this_generation() -> None:
    whole = [gathered(name, {}) for name in NAMES]
    made = root(gather(), [*whole[:3], replace(whole[3], generation=0)])
    assert told(made) == []
    plan = written(told(made, ReportChanged("node-3", whole[3])))
    assert (plan.phase, plan.tier, plan.sources) == (Phase.LOAD, "scratch", ())
    assert plan.rendezvous == "node-0:99"
    assert plan.addresses == tuple(f"{name}:1" for name in NAMES)


def test_own_memory_comes_first_and_a_lost_shard_is_fetched_from_who_has_it() -> None:
    held = {name: {"0": (5,), "1": (5,)} for name in NAMES[:2]}
    held |= {name: {"2": (5,), "3": (5,)} for name in NAMES[2:]}
    held["node-1"] = {}
    plan = written(told(root(gather(), [gathered(name, held[name]) for name in NAMES])))
    assert (plan.iteration, plan.tier) == (5, "peer")
    assert plan.sources == ((0,), (0,), (2, 3), (3, 2))


def test_a_shard_counts_only_if_all_its_ranks_are_there_in_one_iteration() -> None:
    spec = replace(SPEC, ranks_per_machine=2)
    held = {
        "node-0": {"0": (4, 5), "1": (4,), "2": (4,), "3": (4,)},
        "node-1": {"0": (4,), "1": (4, 5), "2": (4,), "3": (4,)},
        "node-2": {str(rank): (4,) for rank in range(4, 8)},
        "node-3": {str(rank): (4,) for rank in range(4, 8)},
    }
    made = root(gather(), [gathered(name, held[name]) for name in NAMES], spec)
    assert written(told(made)).iteration == 4


def test_storage_gives_an_iteration_that_every_machine_sees() -> None:
    seen = {"node-0": (3, 6), "node-1": (3, 6, 9), "node-2": (6,), "node-3": (3, 6)}
    reports = [gathered(name, {}, persistent=seen[name]) for name in NAMES]
    plan = written(told(root(gather(), reports)))
    assert (plan.iteration, plan.tier) == (6, "storage")


def test_a_machine_that_dies_while_it_gathers_is_filled_again_before_a_decision() -> None:
    reports = [gathered(name, {}) for name in NAMES[:3]]
    made = root(gather(), [*reports, report("spare-0")])
    plan = written(told(made))
    assert (plan.generation, plan.phase) == (1, Phase.GATHER)
    assert plan.agents == (*NAMES[:3], "spare-0")


def test_an_agent_that_came_back_gathers_again_in_its_new_life() -> None:
    reports = [gathered(name, {}) for name in NAMES]
    reports[2] = replace(reports[2], incarnation="node-2.2")
    plan = written(told(root(gather(), reports)))
    assert plan.phase == Phase.GATHER
    assert plan.incarnations[2] == "node-2.2"


def test_losses_of_one_second_share_a_plan_where_machines_are_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert [fill_every_s(machines) for machines in (4, 250, 1000)] == [0.0, 0.0, 1.0]
    monkeypatch.setattr(root_module, "fill_every_s", lambda _: 1.0)
    made = root(None, [report(name) for name in (*NAMES, "spare-0", "spare-1")])
    made.handle(PlanChanged(gather(), 11), 10.0)
    for seconds, name in ((0.1, "node-1"), (0.6, "node-3")):
        assert told(made, ReportChanged(name, None), 10.0 + seconds) == []
    filled = written(told(made, now_s=11.0))
    assert filled.agents == ("node-0", "spare-0", "node-2", "spare-1")


def test_who_has_not_heard_that_its_place_was_given_away_is_free_once_it_has() -> None:
    """Seed 72159 of `castor explore`: what it had gathered for was decided on, and taken back."""
    plan = gather(3, (*NAMES[:3], ""))
    others = [gathered(name, {}, generation=3) for name in NAMES[:3]]
    back = gathered("node-3", {}, generation=3)
    made = root(plan, others)
    told(made)
    assert told(made, ReportChanged("node-3", back)) == []
    idle = replace(back, state=State.IDLE)
    assert written(told(made, ReportChanged("node-3", idle))).agents == NAMES
    made.handle(PlanChanged(gather(3), 11), 2.0)
    assert written(told(made, ReportChanged("node-3", back))).phase == Phase.LOAD
    # What it says of an earlier generation is no claim: whoever had a place in it is here again.
    earlier = replace(back, generation=2)
    assert written(told(root(plan, [*others, earlier]))).agents == NAMES


def test_a_machine_is_asked_for_once_a_minute_until_somebody_fills_the_place() -> None:
    made = root(gather(3), [gathered(name, {}, generation=3) for name in NAMES[:3]])
    first = told(made)
    assert written(first).agents == (*NAMES[:3], "")
    made.handle(PlanChanged(gather(3, (*NAMES[:3], "")), 11), 1.5)
    assert RequestMachine(TERM, "3-3") in first
    assert told(made, now_s=REQUEST_AGAIN_S) == []
    assert told(made, now_s=1.0 + REQUEST_AGAIN_S) == [RequestMachine(TERM, "3-3")]
    filled = told(made, ReportChanged("node-9", report("node-9")), now_s=100.0)
    assert written(filled).agents[3] == "node-9"


# ---- LOAD ----------------------------------------------------------------------------------------


def test_a_lost_machine_begins_a_generation_in_which_its_place_is_filled_already() -> None:
    made = root(loading(), [*running()[:3], report("spare-0")])
    plan = written(told(made))
    assert (plan.generation, plan.phase, plan.iteration) == (2, Phase.GATHER, 0)
    assert plan.agents == (*NAMES[:3], "spare-0")
    assert plan.reason == "machine 3: the lease of agent node-3 expired"


def test_an_agent_that_came_back_while_its_machine_trained_is_a_failure() -> None:
    reports = running()
    reports[2] = replace(reports[2], incarnation="node-2.2")
    plan = written(told(root(loading(), reports)))
    assert (plan.generation, plan.phase) == (2, Phase.GATHER)
    assert plan.incarnations == ("node-0.1", "node-1.1", "node-2.2", "node-3.1")


def test_a_software_failure_keeps_every_machine_in_its_place() -> None:
    reports = running()
    reports[1] = saw(reports[1], sight_of_end(1, -9, ""))
    plan = written(told(root(loading(), [*reports, report("spare-0")])))
    assert (plan.generation, plan.agents, plan.thorough) == (2, NAMES, False)
    assert plan.reason == "machine 1: rank 1 was killed by signal 9"


def test_after_a_corrupt_source_everything_is_read_through() -> None:
    reports = running()
    failed = saw(reports[1], Sight(-1, "corrupt", "none left"))
    assert written(told(root(loading(), all_but(1, failed)))).thorough


def test_a_report_of_an_earlier_generation_is_no_failure_of_this_one() -> None:
    reports = running(2)
    reports[1] = replace(reports[1], generation=1, state=State.FAILED, reason="old")
    assert told(root(loading(2), reports)) == []


def test_the_job_is_finished_when_every_machine_says_so() -> None:
    done = [replace(one, state=State.FINISHED, iteration=30) for one in running()]
    assert told(root(loading(), [*done[:3], running()[3]])) == []
    plan = written(told(root(loading(), done)))
    assert (plan.phase, plan.reached) == (Phase.FINISHED, 30)
    assert told(root(replace(loading(), phase=Phase.FINISHED), done)) == []


@pytest.mark.parametrize(("iteration", "attempts"), [(5, 2), (6, 0)])
def test_attempts_count_from_the_last_generation_that_made_progress(
    iteration: int, attempts: int
) -> None:
    reports = running(iteration=iteration)
    reports[0] = saw(reports[0], sight_of_end(0, -9, ""))
    plan = written(told(root(loading(attempts=1), reports)))
    assert (plan.phase, plan.attempts) == (Phase.GATHER, attempts)


def test_an_iteration_whose_checkpoint_failed_is_no_progress() -> None:
    """Case c04 of the trials: a script whose step() always raises ended iterations for ever."""
    reports = [replace(one, complete=5) for one in running(iteration=6)]
    reports[0] = saw(reports[0], sight_of_end(0, -9, ""))
    assert written(told(root(loading(attempts=1), reports))).attempts == 2


def test_an_error_that_recurs_is_no_progress_before_the_job_is_farther_than_ever() -> None:
    failed = saw(running(iteration=8)[0], sight_of_end(0, 1, "ValueError: 0x7f00aa at rank 0"))
    reports = [failed, *(saw(one, lost_peer(r)) for r, one in enumerate(running()[1:], 1))]
    first = written(told(root(loading(attempts=1), reports)))
    assert (first.attempts, first.reached, first.words) == (0, 8, "ValueError: # at rank #")
    again = loading(attempts=1, reached=8, words=first.words)
    assert written(told(root(again, reports))).attempts == 2
    assert written(told(root(replace(again, reached=7), reports))).attempts == 0


def test_an_iteration_that_is_whole_in_memory_was_completed_whoever_said_so() -> None:
    """Seed 1002 of `castor explore`: the trainers died before any of them had told of it."""
    held = {name: {"0": (6,), "1": (6,)} for name in NAMES[:2]}
    held |= {name: {"2": (6,), "3": (6,)} for name in NAMES[2:]}
    reports = [gathered(name, held[name], generation=2) for name in NAMES]
    plan = gather(2, attempts=2, reached=5)
    assert written(told(root(plan, reports))).attempts == 0
    assert written(told(root(replace(plan, reached=6), reports))).attempts == 2


def test_it_gives_up_after_too_many_attempts_and_at_once_where_memory_is_too_small() -> None:
    reports = running(iteration=5)
    reports[0] = saw(reports[0], sight_of_end(0, -9, ""))
    last = written(told(root(loading(attempts=2), reports)))
    assert (last.phase, last.attempts) == (Phase.GATHER, 3)
    # What memory holds may yet show that one was completed.
    held = {"node-0": {"0": (5,), "1": (5,)}, "node-2": {"2": (5,), "3": (5,)}}
    reports = [gathered(name, held.get(name, {}), generation=2) for name in NAMES]
    given_up = written(told(root(last, reports)))
    assert (given_up.phase, given_up.reason) == (
        Phase.FAILED,
        "2 recoveries in a row completed no iteration: machine 0: rank 0 was killed by signal 9",
    )
    assert written(told(root(replace(last, reached=4), reports))).phase == Phase.LOAD
    failed = saw(running()[0], Sight(-1, "memory", "needs 9 GiB"))
    assert written(told(root(loading(), all_but(0, failed)))).reason == "machine 0: needs 9 GiB"


def test_an_error_at_the_start_that_comes_twice_in_the_same_words_ends_the_job() -> None:
    def reports(port: int) -> list[AgentReport]:
        words = f"OSError: port {port} is taken"
        return [saw(one, sight_of_end(r, 1, words)) for r, one in enumerate(running(0, 0))]

    def failing(port: int, generation: int) -> list[AgentReport]:
        return [replace(one, generation=generation) for one in reports(port)]

    start = loading(iteration=0)
    again = written(told(root(start, failing(4711, 1))))
    assert (again.phase, again.generation) == (Phase.GATHER, 2)
    start = replace(start, generation=2, words=again.words, attempts=1)
    ended = written(told(root(start, failing(4712, 2))))
    assert ended.phase == Phase.FAILED
    assert ended.reason.startswith("the same error twice before the first iteration: machine 0:")
    other = written(told(root(replace(start, words="another"), failing(4712, 2))))
    assert other.phase == Phase.GATHER
    trained = written(told(root(replace(start, trained=True), failing(4712, 2))))
    assert trained.phase == Phase.GATHER


# ---- persistent checkpoints ----------------------------------------------------------------------


def test_the_iteration_to_persist_is_announced_ahead_of_every_machine() -> None:
    spec = replace(SPEC, persistence=PersistenceOptions(tiers=("storage",), every_s=10.0))
    made = root(loading(), running(iteration=50), spec)
    assert told(made, now_s=9.0) == []
    now_s, asked, iteration = 10.0, [], 50
    while not asked:
        iteration += 5
        for name in NAMES:
            now = report(name, generation=1, state=State.RUNNING, iteration=iteration)
            asked += told(made, ReportChanged(name, now), now_s)
        asked += told(made, now_s=now_s)
        now_s += 0.5
        assert now_s < 20.0
    (ask,) = asked
    assert isinstance(ask, AskPersist)
    assert ask.iteration > iteration
    assert told(root(loading(), running(), SPEC), now_s=1e6) == []


# ---- scripts -------------------------------------------------------------------------------------


def test_a_generation_trains_only_once_all_machines_have_the_same_script() -> None:
    plan = gather(script="old")
    reports = [gathered(name, {}, script="old") for name in NAMES]
    reports[1] = replace(reports[1], script="new")
    made = root(plan, reports)
    waiting = written(told(made))
    assert waiting.phase == Phase.GATHER
    assert waiting.waits_for == (
        "a changed script holds for all machines or for none: node-0, node-2, node-3: old…; "
        "node-1: new…"
    )
    made.handle(PlanChanged(waiting, 11), 1.0)
    assert told(made) == []  # said once
    for name in ("node-0", "node-2", "node-3"):
        changed = gathered(name, {}, script="new")
        effects = [*told(made, ReportChanged(name, changed)), *told(made)]
        if name == "node-0":
            made.handle(PlanChanged(written(effects), 12), 1.0)
        elif name == "node-2":
            made.handle(PlanChanged(written(effects), 13), 1.0)
    decided = written(effects)
    assert (decided.phase, decided.script, decided.waits_for) == (Phase.LOAD, "new", "")


def test_it_begins_with_agents_of_one_script_and_prefers_standbys_that_have_the_jobs() -> None:
    reports = [report(name, script="old") for name in NAMES]
    other = report("node-00", script="new")
    assert written(told(root(None, [other, *reports]))).agents == NAMES
    mixed = [replace(reports[0], script="new"), *reports[1:]]
    assert told(root(None, mixed)) == []
    spares = [report("spare-0", script="new"), report("spare-1", script="old")]
    empty = gather(agents=("", *NAMES[1:]), script="old")
    assert written(told(root(empty, [*reports[1:], *spares]))).agents[0] == "spare-1"
