"""A machine that its neighbours miss though nothing has failed: what a false alarm costs."""

from __future__ import annotations

import pytest

from castor_policy.agents.neighbours import Neighbours
from castor_sim.explore import peer_watch
from castor_sim.explore.run import Found, Search, notes_of, run_schedule
from castor_sim.explore.world import Shape

RIGHT = Search(Shape())


@pytest.fixture(autouse=True)
def _packets_get_lost_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_watch, "_BURST", 0.01)


@pytest.mark.parametrize("seed", [51, 56])
def test_a_machine_that_two_miss_in_truth_is_swapped(seed: int) -> None:
    assert run_schedule(RIGHT, seed, ()) is None
    notes = notes_of(RIGHT, Found(seed, 0, "", ()))
    (swapped,) = [note for note in notes if "plan: generation 2 gather" in note]
    assert "its neighbours lost agent" in swapped


def test_a_generation_by_the_word_of_who_misses_nobody_any_more_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two missed it, one after the other."""
    assert run_schedule(RIGHT, 0, ()) is None
    monkeypatch.setattr(Neighbours, "found", lambda *_: False)
    found = run_schedule(RIGHT, 0, ())
    assert found is not None
    assert found.invariant == 10
