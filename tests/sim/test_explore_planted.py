"""Bugs planted in the policy are found; a crash of the explorer and what it reached are told."""

from __future__ import annotations

from collections import Counter

import pytest
from typer.testing import CliRunner

from castor.app import app
from castor_policy.agents import parts, root
from castor_sim.explore import trainer
from castor_sim.explore.broken import BROKEN
from castor_sim.explore.draw import draw_faults, pairs
from castor_sim.explore.reached import modules, unreached
from castor_sim.explore.run import CRASHED, Found, Search, run_schedule, run_seed, run_seeds, shrink
from castor_sim.explore.schedule import FAULTS, Fault
from castor_sim.explore.truth import Truth, first_state, next_state
from castor_sim.explore.world import Shape, World

MOST_SEEDS = 2000
MOST_FAULTS = 4
FROM_SEED = {
    "failed-write-pending": 130,
    "judged-at-once": 190,
    "nothing-dropped": 370,
    "older-plan-obeyed": 500,
    "own-key-unread": 155,
    "past-memory-counts": 800,
    "persistent-united": 670,
    "plan-without-its-revision": 330,
    "stale-gathered": 190,
}
"""Where a search begins that takes more than 10 s from seed 0 (docs/explore.md has those)."""


def first_found(search: Search) -> Found:
    seeds = range(FROM_SEED.get(search.broken, 0), MOST_SEEDS)
    found = next((f for seed in seeds if (f := run_seed(search, seed))), None)
    assert found is not None
    return found


@pytest.mark.long
@pytest.mark.timeout(900)  # up to 2,000 schedules
@pytest.mark.parametrize("name", BROKEN)
def test_a_planted_bug_is_found_and_shrunk_and_the_right_code_passes_there(name: str) -> None:
    search = Search(broken=name)
    found = first_found(search)
    assert found.invariant != CRASHED, found.text
    small = shrink(search, found)
    assert len(small.faults) <= MOST_FAULTS
    assert run_schedule(Search(), small.seed, small.faults) is None


def test_every_planted_bug_says_what_it_breaks_and_is_gone_afterwards() -> None:
    for name, variant in BROKEN.items():
        assert variant.name == name
        assert variant.what
        assert variant.patches
        before = [patch.owner.__dict__[patch.name] for patch in variant.patches]
        with variant.planted():
            now = [patch.owner.__dict__[patch.name] for patch in variant.patches]
            assert all(one is not other for one, other in zip(before, now, strict=True))
        assert before == [patch.owner.__dict__[patch.name] for patch in variant.patches]


def test_a_crash_of_the_explorer_is_told_with_its_schedule(monkeypatch) -> None:
    def fails(*_arguments: object) -> None:
        raise ZeroDivisionError("in the explorer")

    monkeypatch.setattr(trainer.SimulatedTrainer, "load", fails)
    crashed = run_seed(Search(), 3)
    assert crashed is not None
    assert crashed.invariant == CRASHED
    assert crashed.faults == Search().faults(3)
    assert "ZeroDivisionError: in the explorer" in crashed.text
    told = CliRunner().invoke(app, ["explore", "--seeds", "1", "--jobs", "1"])
    assert told.exit_code == 3
    assert "replay: castor explore --first-seed 0 " in told.stdout


def test_an_agent_that_raises_is_a_violation(monkeypatch) -> None:
    monkeypatch.setattr(root.Root, "_watch", lambda self, *_: self.nothing_of_the_kind)
    monkeypatch.setattr(parts.PartLoading, "begin", lambda _self: [].pop())
    found = run_seed(Search(), 3)
    assert found is not None


def test_seeds_take_every_pair_of_faults_equally_often() -> None:
    every = pairs(tuple(FAULTS))
    assert len(set(every)) == len(every) == len(FAULTS) * (len(FAULTS) + 1) // 2 * 3
    kinds = ("crash", "net", "store")
    taken = Counter(pairs(kinds)[seed % len(pairs(kinds))] for seed in range(100))
    assert max(taken.values()) - min(taken.values()) <= 1
    assert {f.kind for seed in range(60) for f in draw_faults(seed, kinds, 5, 4)} == set(kinds)


@pytest.mark.long
def test_what_was_reached_adds_up_over_batches() -> None:
    search = Search(Shape(), coverage=True)
    run_seeds(search, range(4))  # what is read, and made, once a process is there from now on
    both = run_seeds(search, range(4)).reached
    one, other = run_seeds(search, range(2)).reached, run_seeds(search, range(2, 4)).reached
    one.add(other)
    assert one.arcs == both.arcs
    assert one.pairs == both.pairs
    counts = {module.__name__: unreached(module, both.arcs) for module in modules()}
    branches, left = counts["castor_policy.agents.worker"]
    assert 0 < len(left) < branches / 2
    assert unreached(root, set())[0] == len(unreached(root, set())[1])
    assert not run_seeds(Search(Shape()), range(1)).reached.arcs


def test_memory_of_another_run_or_generation_is_a_wrong_state() -> None:
    truth = Truth(run=1, ranks=2)
    assert truth.state(0, 0) == first_state(1, 0) != first_state(2, 0)
    for iteration in (1, 2, 3):
        assert truth.trained(iteration, 1)
    given_up = truth.state(1, 3)
    assert truth.trained(3, 2)
    assert truth.state(1, 3) not in (None, given_up)
    assert truth.line(3) == (1, 1, 2)
    assert not truth.trained(3, 1)  # a rank that was paused ends what it had begun
    assert truth.state(1, 4) is None
    truth.switch(3, (1,))
    assert truth.trained(2, 3)
    assert truth.line(9) == (1, 3)
    after_one = next_state(first_state(1, 1), 1, 1)
    assert truth.state(1, 2) == next_state(after_one, 2, 3) == truth.state_on((1, 3), 1)


def test_a_store_that_loses_its_data_costs_no_iteration() -> None:
    for value in (1.0, 2.0, 3.0):
        lost = Fault("store", 4.0, span_s=1.0, value=value)
        assert run_schedule(Search(Shape()), 5, (lost,)) is None


@pytest.mark.parametrize("elsewhere", [0.0, 1.0])
def test_a_second_agent_of_a_name_is_refused_and_the_job_goes_on(elsewhere: float) -> None:
    twin = Fault("twin", 3.0, 1, value=elsewhere)
    world = World(Shape(), 5, (twin,), keep_notes=True)
    world.run()
    refused = [note for note in world.notes or [] if "refuses to start" in note]
    assert len(refused) == 1
    assert "node-1.1 has its name" in refused[0]
    assert world.agents["node-1"].incarnation == "node-1.1"
    assert world.agents["node-1"].exited == 0
    assert run_schedule(Search(Shape(), broken="name-unproven"), 5, (twin,)) is not None


def test_what_an_earlier_run_left_is_neither_offered_nor_loaded() -> None:
    left = Fault("earlier", 0.0, value=3.0)
    world = World(Shape(), 5, (left,), keep_notes=True)
    world.run()
    assert all(len(host.left) == 2 for host in world.hosts)
    assert any("load 0 scratch" in note for note in world.notes or [])
    broken = run_schedule(Search(Shape(), broken="any-run"), 5, (left,))
    assert broken is not None
    assert broken.invariant == 14
