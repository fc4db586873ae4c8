"""Machines that fail again and again, or cannot do their work, give their place to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.effects import Log, RequestMachine, WritePlan
from castor_policy.agents.events import PlanChanged, ReportChanged
from castor_policy.agents.evidence import Culprit, Sight, sight_of_end
from castor_policy.agents.filling import Filling
from castor_policy.agents.fitness import remembered
from castor_policy.agents.history import (
    MOST_FAILURES,
    PastFailure,
    SetAside,
    aside_now,
    often_failed,
)
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.office import Office
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.root import Root
from castor_policy.job_options import RecoveryOptions
from castor_policy.placement import place
from castor_records.events import failures

NAMES = ("node-0", "node-1", "node-2", "node-3")
LIVES = tuple(f"{name}.1" for name in NAMES)
SPEC = JobSpec(
    "j",
    4,
    1,
    "group",
    place("mixed", 4, 2).replicas,
    "t.py",
    recovery=RecoveryOptions(max_attempts=2),
)


def report(name: str, generation: int = 1, **fields: object) -> AgentReport:
    made = AgentReport(name, f"{name}.1", name.startswith("spare"), f"{name}:1", generation)
    return replace(made, **fields)


def loading(generation: int = 1, **fields: object) -> Plan:
    return replace(Plan(generation, 7, Phase.LOAD, NAMES, LIVES, iteration=5), **fields)


def saw(machine: int, *seen: Sight, plan: Plan | None = None, **fields: object) -> AgentReport:
    name = (plan.agents if plan else NAMES)[machine]
    generation = plan.generation if plan else 1
    kind, reason = seen[0].kind, seen[0].text()
    told = {"state": State.FAILED, "kind": kind, "reason": reason, "seen": seen, **fields}
    return report(name, generation, **told)


def lost_peer(rank: int) -> Sight:
    return sight_of_end(rank, 1, "closed by peer", lost_peer=True)


def killed(rank: int) -> Sight:
    return sight_of_end(rank, -9, "")


def failed(plan: Plan, told: AgentReport, *free: str, spec: JobSpec = SPEC) -> Root:
    """The root of a generation in which one machine says what failed, and the rest lost it."""
    others = [
        saw(machine, lost_peer(machine), plan=plan)
        for machine, name in enumerate(plan.agents)
        if name != told.agent
    ]
    reports = [told, *others, *(report(name, 0) for name in free)]
    return Root(spec, Office(7, plan, 10, reports), 0.0)


def written(effects: Sequence[object]) -> Plan:
    return next(effect.plan for effect in effects if isinstance(effect, WritePlan))


def told_aside(made: Root, plan: Plan) -> list[tuple[object, object]]:
    """What the root tells once the store holds the plan that it wrote."""
    told = made.handle(PlanChanged(plan, 100), 3.0, 103.0)
    logs = [e for e in told if isinstance(e, Log) and isinstance(e.event, failures.SetAside)]
    return [(log.event.agent, log.event.stays) for log in logs]


def decide(made: Root, now_s: float = 1.0, at_s: float = 100.0) -> list[object]:
    """What the root does once nobody will say anything more."""
    first = made.handle(ReportChanged("nobody", None), now_s, at_s)
    return list(first or made.handle(ReportChanged("nobody", None), now_s + 2.0, at_s + 2.0))


# ---- a machine on which trainers fail again and again --------------------------------------------


def past(*times_s: float, agent: str = "node-1") -> tuple[PastFailure, ...]:
    return tuple(PastFailure(agent, at_s, "rank 1 was killed by signal 9") for at_s in times_s)


def gathering(made: Root, plan: Plan, held: dict[str, tuple[int, ...]]) -> list[object]:
    """Let every machine that the plan names gather; return what the root does then."""
    made.handle(PlanChanged(plan, 11 + len(plan.aside)), 2.0, 102.0)
    effects: list[object] = []
    for name in plan.agents:
        told = report(
            name,
            plan.generation,
            state=State.GATHERED,
            holdings=held.get(name, {}),
            rendezvous=f"{name}:9",
        )
        effects += made.handle(ReportChanged(name, told), 2.5, 102.5)
    return effects


HELD = {
    "node-0": {"0": (5,), "1": (5,)},
    "node-1": {"0": (5,), "1": (5,)},
    "node-2": {"2": (5,), "3": (5,)},
    "node-3": {"2": (5,), "3": (5,)},
}


def test_the_third_failure_of_a_machine_gives_its_place_to_a_standby() -> None:
    plan = loading(failures=past(10.0, 50.0))
    made = failed(plan, saw(1, killed(1)), "spare-0")
    following = written(decide(made))
    assert following.agents == NAMES  # nothing is given up before its memory is known to be spare
    assert len(following.failures) == 3
    swapped = written(gathering(made, following, HELD))
    assert swapped.agents == ("node-0", "spare-0", "node-2", "node-3")
    assert (swapped.generation, swapped.phase) == (2, Phase.GATHER)
    assert told_aside(made, swapped) == [("node-1", False)]
    (aside,) = swapped.aside
    assert (aside.agent, aside.incarnation) == ("node-1", "node-1.1")
    assert aside.reason == "failed 3 times in 90 s, at last: rank 1 was killed by signal 9"
    assert swapped.failures == ()
    assert Plan.from_json(swapped.to_json()) == swapped
    loads = written(gathering(made, swapped, HELD))
    assert (loads.phase, loads.iteration, loads.agents[1]) == (Phase.LOAD, 5, "spare-0")


def test_without_a_standby_it_goes_on_with_the_machine_and_says_so() -> None:
    made = failed(loading(failures=past(10.0, 50.0)), saw(1, killed(1)))
    following = written(decide(made))
    assert told_aside(made, following) == [("node-1", True)]
    loads = written(gathering(made, following, HELD))
    assert (loads.phase, loads.agents, loads.aside) == (Phase.LOAD, NAMES, ())


def test_a_machine_whose_memory_is_needed_stays() -> None:
    made = failed(loading(failures=past(10.0, 50.0)), saw(1, killed(1)), "spare-0")
    only_there = HELD | {"node-0": {}}
    loads = written(gathering(made, written(decide(made)), only_there))
    assert (loads.phase, loads.iteration, loads.agents) == (Phase.LOAD, 5, NAMES)


def test_a_machine_stays_for_nothing_that_others_have_newer() -> None:
    """Where its replicas lack the newest iteration, the one before it is the safer one with it."""
    both = {"0": (5, 6), "1": (5, 6)}
    ahead = HELD | {
        "node-0": both,
        "node-2": {"2": (5, 6), "3": (5, 6)},
        "node-3": {"2": (5, 6), "3": (5, 6)},
    }
    made = failed(loading(failures=past(10.0, 50.0)), saw(1, killed(1)), "spare-0")
    swapped = written(gathering(made, written(decide(made)), ahead))
    assert (swapped.phase, swapped.agents[1]) == (Phase.GATHER, "spare-0")
    loads = written(gathering(made, swapped, ahead))
    assert (loads.phase, loads.iteration) == (Phase.LOAD, 6)


def test_failures_count_for_an_hour_and_only_of_who_caused_them() -> None:
    late = failed(loading(failures=past(10.0, 50.0)), saw(1, killed(1)), "spare-0")
    following = written(decide(late, at_s=3700.0))
    assert [one.at_s for one in following.failures] == [3700.0]
    unknown = failed(loading(failures=past(10.0, 50.0)), saw(1, lost_peer(1)), "spare-0")
    assert written(decide(unknown)).failures == past(10.0, 50.0)


def test_how_many_is_settable_and_0_is_never() -> None:
    twice = past(10.0, 50.0)
    assert often_failed(twice, "node-1", 2)
    assert not often_failed(twice, "node-1", 3)
    assert not often_failed(twice, "node-0", 1)
    assert not often_failed(twice, "node-1", 0)


def culprit(machine: int, kind: str = "exit") -> Culprit:
    return Culprit(machine, machine, f"node-{machine}", kind, "SyntaxError", "SyntaxError")


def test_a_bug_that_fails_on_every_rank_sets_no_machine_aside() -> None:
    two, one = replace(SPEC, machines=2), replace(SPEC, machines=1)
    assert remembered(SPEC, (), [culprit(m) for m in range(4)], 0.0) == ()
    assert remembered(two, (), [culprit(m) for m in range(2)], 0.0) == ()
    assert remembered(one, (), [culprit(0)], 0.0) == ()
    assert len(remembered(two, (), [culprit(0)], 0.0)) == 1
    assert len(remembered(one, (), [culprit(0, "signal")], 0.0)) == 1


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1e5)), max_size=200))
def test_what_a_plan_remembers_is_bounded(failures: list[tuple[int, float]]) -> None:
    history: tuple[PastFailure, ...] = ()
    spec = replace(SPEC, recovery=RecoveryOptions(max_attempts=2, set_aside_within_s=1e9))
    for machine, at_s in failures:
        history = remembered(spec, history, [culprit(machine)], at_s)
    assert len(history) == min(len(failures), MOST_FAILURES)


def test_an_agent_that_is_started_again_is_free_again() -> None:
    aside = (SetAside("node-1", "node-1.1", "why"),)
    assert aside_now(aside, {"node-1": "node-1.1"}) == aside
    assert aside_now(aside, {}) == aside
    assert aside_now(aside, {"node-1": "node-1.2"}) == ()
    plan = replace(loading(), phase=Phase.GATHER, agents=("node-0", "", *NAMES[2:]), aside=aside)
    reports = [report(name) for name in (NAMES[0], *NAMES[2:])]
    made = Root(SPEC, Office(7, plan, 10, [*reports, report("node-1")]), 0.0)
    assert [type(e) for e in made.handle(ReportChanged("x", None), 1.0)] == [RequestMachine]
    again = replace(report("node-1"), incarnation="node-1.2")
    effects = made.handle(ReportChanged("node-1", again), 1.1)
    assert written(effects).agents == NAMES


# ---- a machine that came to fill a place, and cannot ---------------------------------------------

NEW = replace(
    loading(3),
    agents=("node-0", "spare-0", "node-2", "node-3"),
    incarnations=("node-0.1", "spare-0.1", "node-2.1", "node-3.1"),
    fresh=(1,),
    attempts=1,
    trained=True,
)


def test_a_standby_without_memory_is_put_aside_and_the_next_one_taken() -> None:
    told = saw(1, Sight(-1, "memory", "needs 9 GiB"), plan=NEW)
    made = failed(NEW, told, "spare-1")
    plan = written(decide(made))
    assert plan.phase == Phase.GATHER
    assert plan.agents[1] == "spare-1"
    assert (plan.attempts, plan.fresh) == (1, (1,))
    assert plan.aside == (SetAside("spare-0", "spare-0.1", "needs 9 GiB"),)
    assert told_aside(made, plan) == [("spare-0", False)]


def test_where_no_other_is_free_a_machine_is_asked_for() -> None:
    told = saw(1, Sight(-1, "memory", "needs 9 GiB"), plan=NEW)
    made = failed(NEW, told)
    emptied = written(decide(made))
    assert emptied.agents[1] == ""
    assert RequestMachine(7, "4-1") in made.handle(PlanChanged(emptied, 11), 5.0)


def test_memory_that_is_refused_while_gathering_is_found_too() -> None:
    plan = replace(NEW, phase=Phase.GATHER)
    told = saw(1, Sight(-1, "memory", "needs 9 GiB"), plan=plan)
    reports = [report(name, 3, state=State.GATHERED) for name in ("node-0", "node-2", "node-3")]
    made = Root(SPEC, Office(7, plan, 10, [told, *reports, report("spare-1", 0)]), 0.0)
    swapped = written(decide(made))
    assert (swapped.generation, swapped.agents[1]) == (3, "spare-1")


def test_memory_that_is_too_small_on_every_machine_ends_the_job() -> None:
    small = [saw(m, Sight(-1, "memory", "needs 9 GiB")) for m in range(4)]
    made = Root(SPEC, Office(7, loading(), 10, [*small, report("spare-0", 0)]), 0.0)
    assert written(decide(made)).phase == Phase.FAILED


def test_a_standby_that_alone_lacks_a_module_is_put_aside_but_not_the_next_in_the_same_words() -> (
    None
):
    error = sight_of_end(1, 1, "ModuleNotFoundError: No module named 'flash'")
    first = written(decide(failed(NEW, saw(1, error, plan=NEW), "spare-1")))
    assert (first.agents[1], first.attempts) == ("spare-1", 1)
    assert first.aside[0].reason.startswith("rank 1 exited with code 1: ModuleNotFoundError")
    loads = replace(first, phase=Phase.LOAD)
    made = failed(loads, saw(1, error, plan=loads), "spare-2")
    second = written(decide(made))
    assert (second.agents[1], second.attempts, len(second.aside)) == ("spare-1", 2, 1)


def test_a_source_that_is_not_reached_may_be_dead_so_only_the_second_time_is_the_standbys() -> None:
    cut_off = saw(1, Sight(-1, "fetch", "no source is left for rank 1"), plan=NEW)
    first = written(decide(failed(NEW, cut_off, "spare-1")))
    assert (first.agents, first.unserved, first.culprits) == (NEW.agents, (1,), ())
    loads = replace(first, phase=Phase.LOAD)
    again = saw(1, Sight(-1, "fetch", "no source is left for rank 1"), plan=loads)
    second = written(decide(failed(loads, again, "spare-1")))
    assert second.agents[1] == "spare-1"
    assert second.attempts == first.attempts
    assert second.aside[0].reason == "no source is left for rank 1"


def test_standbys_without_end_do_not_keep_a_hopeless_job_alive() -> None:
    plan, attempts = NEW, []
    while plan.attempts <= SPEC.recovery.max_attempts and len(attempts) < 20:
        told = saw(1, Sight(-1, "memory", "needs 9 GiB"), plan=plan)
        new = f"spare-{len(attempts) + 1}"
        old = [one.agent for one in plan.aside]
        plan = replace(written(decide(failed(plan, told, new, *old))), phase=Phase.LOAD)
        attempts.append(plan.attempts)
    assert attempts == [1, 1, 1, 1, 2, 3]


def test_an_error_that_fails_whoever_fills_the_place_is_the_jobs() -> None:
    """Seed 1463 of `castor explore`: a machine after the other was put aside, without an end."""
    words = "RuntimeError: no such file"
    error = sight_of_end(2, 1, words)
    start = loading(2, iteration=0, words=words, fresh=(2,))
    ended = written(decide(failed(start, saw(2, error, plan=start), "spare-0")))
    assert ended.phase == Phase.FAILED
    assert ended.reason.startswith("the same error twice before the first iteration: machine 2:")


def test_what_was_loaded_is_no_start_even_if_nobody_is_left_who_trained() -> None:
    """Seed 4144 of `castor explore`: all who had trained were lost, and storage had it."""
    words = "RuntimeError: no such file"
    again = loading(3, iteration=3, words=words, attempts=1)
    told = saw(1, sight_of_end(1, 1, words), plan=again)
    assert written(decide(failed(again, told))).phase == Phase.GATHER


def test_a_job_that_one_machine_alone_keeps_from_beginning_goes_on_without_it() -> None:
    error = sight_of_end(2, 1, "RuntimeError: CUDA error: device unavailable")
    start = loading(2, iteration=0, words="RuntimeError: CUDA error: device unavailable")
    plan = written(decide(failed(start, saw(2, error, plan=start), "spare-0")))
    assert (plan.phase, plan.agents[2]) == (Phase.GATHER, "spare-0")
    assert written(decide(failed(start, saw(2, error, plan=start)))).phase == Phase.FAILED


def test_who_is_named_first_and_then_found_to_be_gone_has_failed_once() -> None:
    cause = "agent node-1 does not answer"
    named = Culprit(1, -1, "node-1", "agent", cause)
    once = (PastFailure("node-1", 60.0, cause),)
    plan = loading(2, phase=Phase.GATHER, culprits=(named,), failures=once)
    known = {name: report(name, 2) for name in NAMES} | {"node-1": None}
    filled, _ = Filling(SPEC, 7).fill(plan, known, [], 0.0, 61.0)
    assert [one.kind for one in filled.culprits] == ["agent", "lease"]
    assert filled.failures == once
    # Another one that is lost meanwhile has failed by itself.
    filled, _ = Filling(SPEC, 7).fill(plan, known | {"node-3": None}, [], 0.0, 61.0)
    assert [one.agent for one in filled.failures] == ["node-1", "node-3"]
