"""Schedules as values: drawn from a seed, written down, read again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_configs.errors import InputError
from castor_sim.explore.draw import draw_faults
from castor_sim.explore.network import STORE, Network
from castor_sim.explore.schedule import (
    FAULTS,
    KINDS,
    WISHES,
    Fault,
    faults_from_json,
    faults_to_json,
)
from castor_sim.explore.world import Shape

some_kinds = st.lists(st.sampled_from(list(KINDS)), min_size=1, unique=True)


@given(st.integers(0, 2**40), some_kinds)
def test_a_drawn_schedule_survives_json_and_the_order_of_kinds(seed: int, kinds: list[str]) -> None:
    faults = draw_faults(seed, kinds, 5, 4)
    assert faults_from_json(faults_to_json(faults)) == faults
    assert draw_faults(seed, kinds[::-1], 5, 4) == faults
    assert len(faults) <= 7
    assert 1 <= sum(fault.kind in FAULTS for fault in faults) <= 5 or set(kinds) <= set(WISHES)
    assert {fault.kind for fault in faults} <= set(kinds)
    assert all(fault.describe() and fault.end_s() >= fault.time_s for fault in faults)


def test_every_kind_is_drawn() -> None:
    drawn = {f.kind for seed in range(100) for f in draw_faults(seed, list(KINDS), 5, 4)}
    assert drawn == set(KINDS)


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "{}",
        "[1]",
        '[{"kind":"crash"}]',
        '[{"kind":"crush","time_s":1}]',
        '[{"kind":"crash","time_s":1,"colour":2}]',
        '[{"kind":"crash","time_s":-1}]',
        '[{"kind":"crash","time_s":1,"after":"lunch"}]',
        '[{"kind":"crash","time_s":"soon"}]',
    ],
)
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="fault"):
        faults_from_json(text)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (2, 0, 1), (2, 1, 3)])
def test_a_job_without_a_placement_is_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"\d"):
        Shape(*sizes)


def test_cuts_add_up_and_each_is_of_one_direction() -> None:
    network = Network()
    network.cut("a", STORE)
    network.cut("a", STORE)
    network.mend("a", STORE)
    assert not network.reaches("a", STORE)
    assert network.reaches(STORE, "a")
    assert not network.connects(STORE, "a")
    assert network.connects("b", STORE)
    network.mend("a", STORE)
    assert network.connects("a", STORE)
    assert Fault("crash", 1.0).describe().startswith(" 1.000 s")
