"""Exploring: the agents' own code holds under faults, and what is broken on purpose is found."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from castor_policy import checkpoint_memory
from castor_policy.agents import lease_keeping, life, root, store_view, store_writes, worker
from castor_sim.explore import (
    agent,
    checkpoint_model,
    group,
    monitor,
    session,
    trainer,
    variant,
)
from castor_sim.explore import run as exploring
from castor_sim.explore.checkpoint_model import Replica, part_of
from castor_sim.explore.invariants import INVARIANTS
from castor_sim.explore.run import Found, Search, notes_of, run_schedule, run_seed, shrink
from castor_sim.explore.schedule import KINDS, Fault
from castor_sim.explore.world import Shape

RIGHT = Search(Shape())


@cache
def calm_notes(seed: int) -> tuple[str, ...]:
    """What happens where nothing fails."""
    return tuple(notes_of(RIGHT, Found(seed, 0, "", ())))


def found_by(search: Search, seeds: range) -> Found | None:
    return next((found for seed in seeds if (found := run_seed(search, seed))), None)


def kinds_of(found: Found) -> set[str]:
    return {fault.kind for fault in found.faults}


# ---- the same code -------------------------------------------------------------------------------


def test_it_runs_the_policys_own_objects() -> None:
    assert agent.Worker is worker.Worker
    assert agent.Root is root.Root
    assert agent.AgentLife is life.AgentLife
    assert session.LeaseKeeper is lease_keeping.LeaseKeeper
    assert agent.store_writes is store_writes
    assert checkpoint_model.checkpoint_memory is checkpoint_memory
    assert variant.RIGHT.patches == ()


def test_nothing_that_it_explores_is_defined_again() -> None:
    folder = Path(exploring.__file__).parent
    names = {"Worker", "Root", "PartLoading", "buffer_to_write", "plan_recovery"}
    names |= {"StoreView", "OwnReport", "meaning", "read_plan", "read_report", "take_office"}
    names |= {"AgentLife", "LeaseKeeper"}
    names |= {"root_write", "is_ours", "reports", "layouts", "_repair"}
    defined = {
        node.name
        for file in folder.glob("*.py")
        if file.stem != "broken"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and file.stem != "checkpoint_model"
    }
    assert not names & defined


# ---- the right code ------------------------------------------------------------------------------


def test_no_fault_schedule_breaks_an_invariant() -> None:
    assert [run_seed(Search(), seed) for seed in range(60)] == [None] * 60


@pytest.mark.long
@pytest.mark.parametrize(
    ("shape", "seeds"),
    [
        (Shape(), range(1000, 1080)),
        (Shape(machines=5, replicas=3), range(2000, 2040)),
        (Shape(machines=4, ranks_per_machine=2, standby=0), range(3000, 3040)),
        (Shape(machines=2, standby=2), range(4000, 4040)),
    ],
)
def test_jobs_of_other_shapes_hold_as_well(shape: Shape, seeds: range) -> None:
    search = Search(shape)
    assert [found for seed in seeds if (found := run_seed(search, seed))] == []


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_fault_alone_is_survived_and_does_something(kind: str) -> None:
    search = Search(Shape(), kinds=(kind,))
    struck = False
    for seed in range(7, 12):
        assert run_seed(search, seed) is None
        if not struck:
            notes = notes_of(search, Found(seed, 0, "", search.faults(seed)))
            named = any(f"FAULT {kind} " in note for note in notes)
            struck = named and tuple(notes) != calm_notes(seed)
    assert struck


def test_an_outage_of_the_store_costs_no_generation_and_no_time() -> None:
    begins = Fault("store", 0.636, span_s=3.648)
    assert run_schedule(Search(Shape(standby=0)), 30190, (begins,)) is None
    outage = Fault("store", 3.0, span_s=9.0)
    notes = notes_of(RIGHT, Found(1, 0, "", (outage,)))
    assert not any("generation 2" in note for note in notes)
    calm = notes_of(RIGHT, Found(1, 0, "", ()))

    def trained(lines: list[str]) -> list[float]:
        return [float(line.split()[0]) for line in lines if "ends: 0" in line]

    assert len(trained(notes)) == 4
    assert max(trained(notes)) < max(trained(calm)) + 0.5


@pytest.mark.parametrize(
    "faults",
    [
        # Machine 0 is lost after a trainer was: what was in flight is not all that is left.
        (Fault("trainer", 2.3, 3), Fault("crash", 2.3, 0, after="load", lag_s=0.1)),
        # Machines are lost before the first plan: others are asked for.
        tuple(Fault("crash", 0.31 + 0.01 * n) for n in range(3)),
        # A report that its sender had given up arrives after the next one.
        (Fault("late", 4.5, 0, span_s=2.339, value=1.5), Fault("trainer", 7.4, 2)),
        # A whole group is lost at once: storage.
        (Fault("crash", 6.0, 0), Fault("crash", 6.0, 0)),
        # Both copies of a part are spoilt, then it is needed.
        (Fault("flip", 5.0, 1), Fault("flip", 5.0, 1, 1), Fault("trainer", 5.01, 0)),
        # Storage answers none of the first machines, and one that comes later.
        (
            Fault("silent", 0.0, value=1.0, after="gather", lag_s=0.1),
            Fault("crash", 0.0, 3, after="gather", lag_s=0.1),
        ),
    ],
)
def test_schedules_that_once_failed_pass(faults: tuple[Fault, ...]) -> None:
    for seed in range(8):
        assert run_schedule(RIGHT, seed, faults) is None


@pytest.mark.parametrize(
    ("seed", "faults"),
    [
        (
            1463,  # a script that failed in one place had a machine after the other put aside
            (
                Fault("error", 0.0, 2, other=2, after="load", lag_s=0.075),
                Fault("silent", 2.3, 3),
            ),
        ),
        # Two whose only root left was stuck itself: nobody asked for machines.
        (1490, (Fault("crash", 4.6, 0, value=1.0), Fault("stuck", 6.0, 0, value=1.0))),
        (2231, (Fault("stuck", 3.5, 1, value=1.0), Fault("crash", 3.5, 2, value=1.0))),
        # An error that recurs counted as one before the first iteration: who had trained was lost.
        (4144, (Fault("crash", 3.8, 0, value=1.0), Fault("error", 4.9, 1, other=2, value=1.0))),
        (
            9448,  # a rank left while it started, which is waited for: the checker was too strict
            (
                Fault("leave", 3.4, 0, other=1, value=1.0, after="gather", lag_s=0.108),
                Fault("loss", 3.526, 1, span_s=5.915, value=0.6),
                Fault("stop", 3.7, 1, value=1.0),
            ),
        ),
        (
            72159,  # decided on what one said that woke before it heard that its place was gone
            (
                Fault("root", 3.0, 2, other=1, span_s=3.089, value=1.0),
                Fault("pause", 3.1, 2, other=1, span_s=6.299, value=1.0),
            ),
        ),
        (
            98174,  # its machine came up again, and a lease that ended late still held its name
            (
                Fault("root", 2.5, 3, span_s=1.522, value=1.0, lag_s=1.5),
                Fault("lease", 4.3, 3, value=8.0),
            ),
        ),
        # To end at once, and to end at a checkpoint, by two who did not know of each other.
        (92480, (Fault("stop", 1.662, 2), Fault("stop", 1.665, 3, value=1.0))),
        # A root was elected under a lease that it gave up next: the store had gone to a backup.
        (81898, (Fault("store", 2.903, 3, span_s=3.267, value=2.0),)),
    ],
)
def test_seeds_that_once_failed_pass(seed: int, faults: tuple[Fault, ...]) -> None:
    assert run_schedule(Search(), seed, faults) is None


# ---- the broken code -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broken", "invariant"),
    [("root-without-fencing", 6), ("offer-before-complete", 1), ("buffer-reused-early", 4)],
)
def test_what_is_broken_on_purpose_is_found_and_shrunk(broken: str, invariant: int) -> None:
    search = Search(Shape(), broken=broken)
    found = found_by(search, range(60))
    assert found is not None
    assert found.invariant == invariant
    small = shrink(search, found)
    assert 1 <= len(small.faults) <= 3
    assert run_schedule(search, small.seed, small.faults) == small
    assert run_schedule(RIGHT, small.seed, small.faults) is None
    assert run_seed(RIGHT, found.seed) is None
    for index in range(len(small.faults)):
        fewer = small.faults[:index] + small.faults[index + 1 :]
        again = run_schedule(search, small.seed, fewer)
        assert again is None or again.invariant != invariant


# ---- the monitor sees what it is there for -------------------------------------------------------


def test_an_update_that_does_not_wait_for_the_capture_is_seen(monkeypatch) -> None:
    for name in ("captured", "kept"):
        anything = property(lambda *_: 99, lambda *_: None)
        monkeypatch.setattr(trainer.SimulatedTrainer, name, anything)
    monkeypatch.setattr(group, "ITERATION_S", 0.05)
    found = run_schedule(RIGHT, 1, ())
    assert found is not None
    assert found.invariant == 2


def test_a_checkpoint_that_is_missing_at_the_end_of_a_period_is_seen(monkeypatch) -> None:
    every = Search(Shape(checkpoint_every=3))
    assert run_schedule(every, 1, ()) is None
    monkeypatch.setattr(group, "is_due", lambda iteration, every: iteration % (every + 1) == 0)
    found = run_schedule(every, 1, ())
    assert found is not None
    assert found.invariant == 4
    assert "4 iterations past its last checkpoint" in found.text


def test_a_part_that_is_loaded_unread_is_seen(monkeypatch) -> None:
    monkeypatch.setattr(Replica, "is_intact", lambda *_: True)
    faults = (Fault("flip", 5.0, 1), Fault("trainer", 5.01, 0))
    found = [f for seed in range(5) if (f := run_schedule(RIGHT, seed, faults))]
    assert {violation.invariant for violation in found} == {7}


def test_ranks_that_load_different_iterations_are_seen(monkeypatch) -> None:
    read = trainer.SimulatedTrainer._read

    def other_iteration(self, offer):
        part = read(self, offer)
        if self.rank == 1 and offer.iteration > 1:
            object.__setattr__(offer, "iteration", offer.iteration - 1)
            return part_of(self.world.truth.state(1, offer.iteration))
        return part

    monkeypatch.setattr(trainer.SimulatedTrainer, "_read", other_iteration)
    # A seed tells only if its failure falls after the first complete iteration.
    faults = (Fault("trainer", 5.0, 0),)
    found = [f for seed in range(4) if (f := run_schedule(RIGHT, seed, faults))]
    assert {violation.invariant for violation in found} == {5}


def test_a_machine_that_keeps_training_in_anothers_place_is_seen(monkeypatch) -> None:
    loaded = monitor.Monitor.planned

    def given_away(self, plan):
        loaded(self, plan)
        lives = ("somebody.1", *plan.incarnations[1:])
        if plan.phase == "load":
            self._loads[plan.generation] = monitor.Plan(
                plan.generation, plan.term, plan.phase, plan.agents, lives
            )

    monkeypatch.setattr(monitor.Monitor, "planned", given_away)
    found = run_schedule(RIGHT, 1, ())
    assert found is not None
    assert found.invariant == 9


def test_an_older_generation_that_goes_on_is_seen(monkeypatch) -> None:
    begun = monitor.Monitor.planned

    def ahead(self, plan):
        begun(self, plan)
        if plan.phase == "load":
            self._loads[plan.generation + 1] = plan

    monkeypatch.setattr(monitor.Monitor, "planned", ahead)
    found = run_schedule(RIGHT, 1, ())
    assert found is not None
    assert found.invariant == 8


def test_a_machine_that_wakes_may_end_the_update_that_it_had_begun() -> None:
    pause = Fault("pause", 7.473, 2, span_s=3.683, value=1.0)
    cut = Fault("net", 8.6, 2, -1, span_s=5.525)
    late = Fault("late", 1.9, 4, span_s=2.682, value=3.0)
    assert run_schedule(RIGHT, 50511, (late, pause, cut)) is None


def test_a_root_that_does_not_act_is_seen(monkeypatch) -> None:
    monkeypatch.setattr(root.Root, "_watch", lambda *_: [])
    found = run_schedule(RIGHT, 1, ())
    assert found is not None
    assert found.invariant == 11
    assert INVARIANTS[11] in found.text


def test_a_generation_begun_for_an_outage_of_the_store_is_seen(monkeypatch) -> None:
    tick = worker.Worker._tick

    def panics(self, event, now_s):
        gone = self._contact.is_silent and self.machine is not None
        return [*tick(self, event, now_s), *(self._fail("store", "it is gone") if gone else ())]

    monkeypatch.setattr(worker.Worker, "_tick", panics)
    found = run_schedule(RIGHT, 1, (Fault("store", 3.0, span_s=3.0),))
    assert found is not None
    assert found.invariant == 10


def test_a_worker_that_goes_a_way_of_its_own_is_seen(monkeypatch) -> None:
    lost = worker.Worker._store_lost

    def gives_up(self, event, now_s):
        return [*lost(self, event, now_s), *self._fail("store", "it is gone")]

    monkeypatch.setattr(worker.Worker, "_store_lost", gives_up)
    found = run_schedule(RIGHT, 1, (Fault("store", 3.0, span_s=3.0),))
    assert found is not None
    assert found.invariant == 21
    assert "to failed by StoreLost" in found.text


# ---- determinism ---------------------------------------------------------------------------------


def test_a_seed_is_one_run() -> None:
    for seed in (3, 11):
        found = Found(seed, 0, "", RIGHT.faults(seed))
        assert notes_of(RIGHT, found) == notes_of(RIGHT, found)
    assert len({RIGHT.faults(seed) for seed in range(50)}) == 50


# ---- what a user asks for ------------------------------------------------------------------------

_STOP = Fault("stop", 3.0, value=1.0)
_DRAIN = Fault("drain", 3.0, 1)


def plans_of(search: Search, *faults: Fault) -> list[str]:
    notes = notes_of(search, Found(5, 0, "", faults))
    return [note[10:] for note in notes if "plan: " in note]


def test_a_drain_is_one_more_generation_from_where_all_held() -> None:
    first, load, gather, again, end = plans_of(RIGHT, _DRAIN)
    assert "gather 0" in first
    assert "load 0" in load
    assert "generation 2 gather" in gather
    assert "'spare-0.1'" in gather
    assert "'node-1.1'" not in gather
    assert "generation 2 load" in again
    assert " peer " in again
    assert "finished" in end
    # Whoever asks first leaves first: with one standby, and an operator, both go in the end.
    both = plans_of(RIGHT, _DRAIN, Fault("drain", 3.0, 2, value=1.0, span_s=60.0))
    assert both[-1].count("node-1.1") + both[-1].count("node-2.1") == 0


def test_a_stop_at_a_checkpoint_outlives_the_root_that_was_asked() -> None:
    search = Search(Shape(iterations=60))
    assert "node-2.1 is root" in " ".join(notes_of(search, Found(5, 0, "", ())))
    faults = (_STOP, Fault("agent", 3.1, target=2, span_s=0.5))
    assert run_schedule(search, 5, faults) is None
    assert "stopped by its user at a checkpoint" in plans_of(search, *faults)[-1]


def test_a_root_that_does_not_read_what_was_asked_for_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_view.StoreView, "wishes", lambda _: {})
    faults = (_STOP, Fault("agent", 3.1, target=2, span_s=0.5))
    found = run_schedule(Search(Shape(iterations=60)), 5, faults)
    assert found is not None
    assert found.invariant == 23


def test_what_was_asked_for_outlives_the_stores_data() -> None:
    search = Search(Shape(iterations=60))
    faults = (_STOP, Fault("store", 3.02, span_s=1.0, value=1.0))
    assert run_schedule(search, 5, faults) is None
    assert "stopped by its user at a checkpoint" in plans_of(search, *faults)[-1]
