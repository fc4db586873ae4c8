"""A machine that those around it have lost: who says so, when it counts, and what it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.effects import Depose, Log, Report, RootEffect, WatchPeers, WritePlan
from castor_policy.agents.events import (
    Inspected,
    PeerFound,
    PeerLost,
    PlanChanged,
    ReportChanged,
    RootChanged,
    SessionOpened,
    Tick,
)
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.neighbours import Neighbours, lost_early
from castor_policy.agents.office import Office
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.root import Root
from castor_policy.agents.store_keys import agents_prefix, plan_key, root_key
from castor_policy.agents.store_view import StoreView
from castor_policy.agents.worker import Worker
from castor_policy.membership import WatchLimits
from castor_policy.placement import place
from castor_policy.store import KeyValue
from castor_records.events.failures import Detected

WITHIN_S = 0.75


def names(machines: int) -> tuple[str, ...]:
    return tuple(f"node-{machine}" for machine in range(machines))


def life(name: str) -> str:
    return f"{name}.1"


def loaded(machines: int) -> Plan:
    agents = names(machines)
    return Plan(
        1,
        7,
        Phase.LOAD,
        agents,
        tuple(map(life, agents)),
        iteration=5,
        tier="own_memory",
        sources=tuple((machine,) for machine in range(machines)),
        addresses=tuple(f"{name}:1" for name in agents),
    )


def report(name: str, *misses: str, standby: bool = False) -> AgentReport:
    told = AgentReport(name, life(name), standby, f"{name}:1", 0 if standby else 1)
    state = State.IDLE if standby else State.RUNNING
    return replace(told, state=state, redundant=True, unreached=tuple(map(life, misses)))


def said(machines: int, misses: dict[int, tuple[int, ...]]) -> dict[str, AgentReport]:
    """Return the reports of machines, each with those that it misses."""
    everybody = names(machines)
    return {
        name: report(name, *(everybody[one] for one in misses.get(machine, ())))
        for machine, name in enumerate(everybody)
    }


# ---- whom a machine watches ----------------------------------------------------------------------


def test_the_next_machine_on_either_side_is_watched_and_past_the_lost_the_one_behind() -> None:
    around = Neighbours()
    around.follow(loaded(5), 1)
    assert [one.agent for one in around.watched] == ["node-2", "node-0"]
    assert around.lost(life("node-2"))
    assert [one.agent for one in around.watched] == ["node-2", "node-3", "node-0"]
    assert around.lost(life("node-3"))
    assert [one.agent for one in around.watched] == ["node-2", "node-3", "node-4", "node-0"]
    assert around.unreached == (life("node-2"), life("node-3"))
    assert not around.lost(life("node-3")), "it is known"
    assert not around.lost("node-3.2"), "of that life it knows nothing"
    assert around.found(life("node-2"))
    assert [one.agent for one in around.watched] == ["node-2", "node-0"]
    assert around.unreached == (), "of those behind it nothing is known any more"


def test_two_machines_watch_each_other_and_one_alone_nobody() -> None:
    around = Neighbours()
    around.follow(loaded(2), 0)
    assert [one.agent for one in around.watched] == ["node-1"]
    around.follow(loaded(1), 0)
    assert around.watched == ()


def test_who_is_in_the_next_plan_no_more_is_forgotten_and_so_is_everybody_without_a_place() -> None:
    around = Neighbours()
    around.follow(loaded(4), 0)
    around.lost(life("node-1"))
    replaced = replace(
        loaded(4),
        agents=("node-0", "spare-0", "node-2", "node-3"),
        incarnations=("node-0.1", "spare-0.1", "node-2.1", "node-3.1"),
    )
    around.follow(replaced, 0)
    assert around.unreached == ()
    around.lost(life("node-3"))
    around.follow(replaced, 0)
    assert around.unreached == (life("node-3"),), "it still cannot be reached"
    around.leave()
    assert (around.unreached, around.watched) == ((), ())


@given(st.integers(2, 40), st.data())
def test_every_lost_machine_has_a_witness_on_either_side(
    machines: int, data: st.DataObject
) -> None:
    gone = data.draw(st.sets(st.integers(0, machines - 1), max_size=min(8, machines - 1)))
    plan = loaded(machines)
    misses: dict[int, tuple[int, ...]] = {}
    for machine in set(range(machines)) - gone:
        around = Neighbours()
        around.follow(plan, machine)
        while new := [
            o for o in around.watched if int(o.agent[5:]) in gone and around.lost(o.incarnation)
        ]:
            assert new
        misses[machine] = tuple(int(one[5:-2]) for one in around.unreached)
    reports = {
        f"node-{m}": report(f"node-{m}", *(f"node-{o}" for o in of)) for m, of in misses.items()
    }
    kept = all(set(row) - gone for row in job(machines).replicas)
    expected = tuple(sorted(gone)) if len(misses) >= 2 and kept else ()
    assert lost_early(job(machines), plan, reports, (), machines) == expected


# ---- when a machine counts as lost ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("machines", "misses", "expected"),
    [
        (4, {0: (1,)}, ()),  # one machine's word
        (4, {0: (1,), 2: (1,)}, (1,)),
        (2, {0: (1,)}, ()),  # nor where there is nobody else
        (2, {0: (1,), 1: (0,)}, ()),  # each says so of the other
        (3, {0: (1, 2), 1: (0,), 2: (0,)}, (0,)),  # who is cut off misses everybody
        (4, {0: (3, 2), 1: (2, 3), 2: (1, 0), 3: (0, 1)}, ()),  # nobody of either half counts
        (4, {0: (1, 2), 3: (2, 1)}, (1, 2)),
        (4, {1: (2, 3), 0: (3, 2)}, ()),  # they hold each other's shards, and may come back
    ],
)
def test_two_others_must_say_it(machines, misses, expected) -> None:
    assert lost_early(job(machines), loaded(machines), said(machines, misses), (), 4) == expected


def test_of_two_machines_a_spare_is_the_second_witness() -> None:
    def lost(spare: tuple[str, ...], misses: dict[int, tuple[int, ...]]) -> tuple[int, ...]:
        told = {"spare-0": report("spare-0", *spare, standby=True)}
        return lost_early(job(2), loaded(2), said(2, misses) | told, (), 1)

    assert lost(("node-1",), {0: (1,)}) == (1,)
    assert lost(("node-1",), {0: (1,), 1: (0,)}) == (1,)
    assert lost((), {0: (1,), 1: (0,)}) == (), "the wire between them is cut"
    assert lost(("node-0", "node-1"), {}) == (), "the spare is"


def test_a_spare_watches_two_machines_and_no_more() -> None:
    around = Neighbours()
    around.follow(loaded(2), None)
    assert {one.agent for one in around.watched} == {"node-0", "node-1"}
    around.follow(loaded(3), None)
    assert around.watched == ()


def test_nothing_is_decided_unless_there_is_somebody_for_every_empty_place() -> None:
    reports = said(5, {0: (1,), 2: (1,)})
    assert lost_early(job(5), loaded(5), reports, (), 0) == ()
    assert lost_early(job(5), loaded(5), reports, (), 1) == (1,)
    assert lost_early(job(5), loaded(5), reports, (4,), 1) == ()
    assert lost_early(job(5), loaded(5), reports, (4, 1), 2) == (1,)


def test_an_earlier_life_is_no_witness_and_is_not_missed() -> None:
    reports = said(4, {0: (1,), 2: (1,)})
    other = replace(reports["node-2"], incarnation="node-2.2")
    assert lost_early(job(4), loaded(4), reports | {"node-2": other}, (), 1) == ()
    restarted = replace(loaded(4), incarnations=("node-0.1", "node-1.2", "node-2.1", "node-3.1"))
    assert lost_early(job(4), restarted, reports, (), 1) == ()


def test_who_has_not_got_its_replicas_yet_keeps_no_shard() -> None:
    reports = said(4, {0: (1,), 2: (1,)})
    anew = replace(reports["node-0"], redundant=False)
    fresh = replace(loaded(4), tier="scratch", sources=())
    assert lost_early(job(4), fresh, reports, (), 1) == (1,)
    assert lost_early(job(4), fresh, reports | {"node-0": anew}, (), 1) == ()
    # It was loaded from there, so it is there.
    assert lost_early(job(4), loaded(4), reports | {"node-0": anew}, (), 1) == ()
    both = replace(loaded(4), sources=((0,), (1, 0), (2,), (3,)))
    assert lost_early(job(4), both, reports | {"node-0": anew}, (), 1) == (1,)
    # While all gather, by what they say that they hold.
    gathers = replace(loaded(4), phase=Phase.GATHER, generation=2)
    told = {
        name: replace(one, generation=2, redundant=False, holdings={"0": (5,), "1": (5,)})
        for name, one in said(4, {0: (1,), 2: (1,)}).items()
    }
    others = {"2": (5,), "3": (5,)}
    told |= {n: replace(told[n], holdings=others) for n in ("node-2", "node-3")}
    assert lost_early(job(4), gathers, told, (), 1) == (1,)
    told["node-0"] = replace(told["node-0"], holdings={"0": (5,)})
    assert lost_early(job(4), gathers, told, (), 1) == ()


@given(st.integers(3, 12), st.data())
def test_whatever_one_machine_says_nobody_is_lost_by_it_alone(machines: int, data) -> None:
    liar = data.draw(st.integers(0, machines - 1))
    misses = data.draw(st.sets(st.integers(0, machines - 1)))
    assert (
        lost_early(job(machines), loaded(machines), said(machines, {liar: tuple(misses)}), (), 9)
        == ()
    )


# ---- the root ------------------------------------------------------------------------------------


def job(machines: int = 4, **limits: float) -> JobSpec:
    rows = place("mixed", machines, 2).replicas
    return JobSpec("j", machines, 1, "group", rows, "train.py", limits=WatchLimits(**limits))


def root(*others: AgentReport) -> Root:
    reports = [*said(4, {}).values(), *others]
    return Root(job(), Office(7, loaded(4), 3, reports), 0.0)


def see(made: Root, *told: AgentReport, now_s: float = 1.0) -> list[RootEffect]:
    return [e for one in told for e in made.handle(ReportChanged(one.agent, one), now_s)]


def written(effects: list[RootEffect]) -> Plan:
    (plan,) = [effect.plan for effect in effects if isinstance(effect, WritePlan)]
    return plan


def test_a_machine_that_two_miss_loses_its_place_to_a_standby_though_its_lease_lives() -> None:
    made = root(report("spare-0", standby=True))
    assert see(made, report("node-0", "node-1")) == []
    begun = written(see(made, report("node-2", "node-1")))
    assert (begun.generation, begun.phase) == (2, Phase.GATHER)
    assert begun.agents == ("node-0", "spare-0", "node-2", "node-3")
    told = made.handle(PlanChanged(begun, 4), 1.0)
    (seen,) = [e.event for e in told if isinstance(e, Log) and isinstance(e.event, Detected)]
    assert (seen.how, seen.failure, seen.machine) == ("unreached", "hardware", 1)
    assert "its neighbours lost agent node-1" in seen.cause


def test_without_a_standby_the_lease_counts_and_one_that_comes_is_taken_at_once() -> None:
    made = root()
    assert see(made, report("node-0", "node-1"), report("node-2", "node-1")) == []
    assert made.handle(Tick(), 4.0) == []
    assert written(see(made, report("spare-0", standby=True))).generation == 2


def test_who_was_only_cut_off_is_a_spare_that_others_are_preferred_to() -> None:
    made = root(report("spare-0", standby=True), report("spare-1", standby=True))
    see(made, report("node-0", "node-1"))
    begun = written(see(made, report("node-2", "node-1")))
    made.handle(PlanChanged(begun, 4), 1.0)
    back = replace(report("node-1"), generation=2, state=State.IDLE)
    see(made, report("node-0"), report("node-2"), back)
    loads = replace(begun, phase=Phase.LOAD, addresses=("a:1",) * 4, sources=((0,),) * 4)
    made.handle(PlanChanged(loads, 6), 2.0)
    now = [replace(report(name), generation=2) for name in loads.agents]
    see(made, *now, now_s=2.0)
    begun = written(made.handle(ReportChanged("node-3", None), 3.0))
    assert begun.agents[3] == "spare-1", "node-1 comes first by its name, and was cut off once"


def test_who_has_not_seen_the_newest_generation_load_is_taken_last_for_it_may_be_dead() -> None:
    # node-9 was given up by a root that is lost itself, and its lease lives.
    dead = replace(report("node-9", standby=True), standby=False)
    alive = replace(report("spare-0", standby=True), load_seen=1)
    made = root(dead, alive)
    begun = written(made.handle(ReportChanged("node-3", None), 1.0))
    assert begun.agents[3] == "spare-0"


def test_a_machine_that_one_misses_is_no_machine_that_all_train_around() -> None:
    made = root(report("spare-0", standby=True))
    see(made, report("node-0", "node-1"))
    assert made.handle(Tick(), 2.0) == []
    # Its connection stands again: nothing has been.
    see(made, report("node-0"), report("node-2", "node-1"))
    assert made.handle(Tick(), 3.0) == []


# ---- the worker ----------------------------------------------------------------------------------


def trains(spec: JobSpec | None = None) -> Worker:
    made = Worker(spec or job(), "node-0", life("node-0"), "node-0:1", False, 0.0)
    plan = loaded(4)
    made.handle(SessionOpened(None), 0.0)
    made.handle(PlanChanged(replace(plan, phase=Phase.GATHER), 2), 0.0)
    made.handle(Inspected(1, {0: (5,), 3: (5,), 1: (5,)}, (), "node-0:9"), 0.0)
    effects = made.handle(PlanChanged(plan, 3), 0.0)
    watched = [effect for effect in effects if isinstance(effect, WatchPeers)]
    assert bool(watched) == bool(made.spec.limits.unreached_s)
    return made


def test_a_worker_says_whom_it_misses_and_watches_the_one_behind() -> None:
    made = trains()
    watch, told = made.handle(PeerLost(life("node-1")), 1.0)
    assert isinstance(watch, WatchPeers)
    assert ([one.agent for one in watch.peers], watch.within_s) == (
        ["node-1", "node-2", "node-3"],
        WITHIN_S,
    )
    assert isinstance(told, Report)
    assert told.report.unreached == (life("node-1"),)
    assert made.handle(PeerLost(life("node-1")), 1.1) == []
    _, told = made.handle(PeerFound(life("node-1")), 2.0)
    assert isinstance(told, Report)
    assert told.report.unreached == ()
    assert made.handle(PeerFound(life("node-1")), 2.1) == []


def test_what_it_misses_is_said_in_the_next_generation_too_and_no_more_without_a_place() -> None:
    made = trains()
    made.handle(PeerLost(life("node-1")), 1.0)
    following = replace(loaded(4), generation=2, phase=Phase.GATHER)
    made.handle(PlanChanged(following, 4), 1.1)
    (told,) = made.handle(Inspected(2, {}, (), "node-0:9"), 1.2)
    assert isinstance(told, Report)
    assert (told.report.generation, told.report.unreached) == (2, (life("node-1"),))
    others = replace(following, agents=("spare-0", *names(4)[1:]))
    effects = made.handle(PlanChanged(others, 5), 1.3)
    assert WatchPeers((), WITHIN_S) in effects
    assert made.report.unreached == ()


def test_a_lost_root_is_deposed_until_another_is_elected() -> None:
    made = trains()
    made.handle(RootChanged("node-1"), 0.5)
    assert Depose("node-1") not in made.handle(PeerLost(life("node-3")), 0.9)
    assert Depose("node-1") in made.handle(PeerLost(life("node-1")), 1.0)
    assert Depose("node-1") in made.handle(Tick(), 1.25), "another may have to say it first"
    # Elected anew after it was lost: it is there.
    made.handle(RootChanged("node-1"), 1.3)
    assert Depose("node-1") not in made.handle(Tick(), 1.5)


def test_a_root_that_is_found_again_is_not_deposed() -> None:
    made = trains()
    made.handle(RootChanged("node-1"), 0.5)
    made.handle(PeerLost(life("node-1")), 1.0)
    made.handle(PeerFound(life("node-1")), 1.1)
    assert Depose("node-1") not in made.handle(Tick(), 1.25)


def test_it_can_be_left_to_the_leases() -> None:
    made = trains(job(unreached_s=0.0))
    assert made.handle(PeerLost(life("node-1")), 1.0) == []


# ---- who deposes a root --------------------------------------------------------------------------


def seen(*reports: AgentReport) -> tuple[StoreView, list[KeyValue]]:
    view = StoreView("j", "node-0")
    known = [
        KeyValue(root_key("j"), "node-1", 5, 5, 1),
        KeyValue(plan_key("j"), loaded(4).to_json(), 6, 6, None),
    ]
    view.read(known, 9, view.agents_keys)
    return view, [
        KeyValue(agents_prefix("j") + one.agent, one.to_json(), 4, 4, 2) for one in reports
    ]


def test_a_roots_term_is_ended_on_the_same_evidence_as_a_machine_is_lost() -> None:
    spare = report("spare-0", standby=True)
    both = said(4, {0: (1,), 2: (1,)}).values()
    view, found = seen(*both, spare)
    assert view.term_to_end(job(), "node-1", found) == 5
    assert view.term_to_end(job(), "node-2", found) is None, "it is not in office"
    view, found = seen(*both)
    assert view.term_to_end(job(), "node-1", found) is None, "nobody can take its place"
    view, found = seen(*said(4, {0: (1,)}).values(), spare)
    assert view.term_to_end(job(), "node-1", found) is None, "one machine says so"
