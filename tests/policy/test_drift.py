"""When a schedule no longer fits: what must count as a drift, and what must not."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from castor_policy.drift import FLOOR_NS, THRESHOLD, has_drifted

MS = 10**6
spans = st.lists(st.integers(0, 10**9), min_size=1, max_size=8)


@given(spans, st.integers(1, 6))
def test_what_was_scheduled_is_no_drift(scheduled: list[int], window: int) -> None:
    assert not has_drifted(scheduled, [scheduled] * window)
    assert not has_drifted(scheduled, [])


@given(spans, st.integers(1, 6), st.data())
def test_what_stays_within_the_threshold_is_no_drift(
    scheduled: list[int], window: int, data: st.DataObject
) -> None:
    share = st.integers(-int(THRESHOLD * 100), int(THRESHOLD * 100))
    recent = [
        [max(0, span + span * data.draw(share) // 100) for span in scheduled] for _ in range(window)
    ]
    # Rounding down moves a span by up to a nanosecond more.
    assume(sum(scheduled) * THRESHOLD < FLOOR_NS or all(span % 100 == 0 for span in scheduled))
    assert not has_drifted(scheduled, recent)


@given(spans, st.integers(1, 6))
def test_another_number_of_spans_is_a_drift(scheduled: list[int], window: int) -> None:
    assert has_drifted(scheduled, [[*scheduled, 0]] * window)
    assert not has_drifted(scheduled, [[*scheduled, 0]] + [scheduled] * window)


@given(spans, st.integers(2, 9), st.data())
def test_one_rule_decides_for_every_window(
    scheduled: list[int], window: int, data: st.DataObject
) -> None:
    """Against the rule in other words: sort each column, take the lower middle, add distances."""
    same = st.lists(st.integers(0, 10**9), min_size=len(scheduled), max_size=len(scheduled))
    recent = [data.draw(same) for _ in range(window)]
    moved = 0
    for index, planned in enumerate(scheduled):
        column = sorted(one[index] for one in recent)
        moved += abs(column[(window - 1) // 2] - planned)
    expected = moved > FLOOR_NS and moved * 5 > sum(scheduled)
    assert has_drifted(scheduled, recent) == expected


@pytest.mark.parametrize(
    ("after", "drifted"), [(0, False), (1, False), (2, False), (3, True), (4, True), (5, True)]
)
def test_a_lasting_change_shows_after_half_of_the_window(after: int, drifted: bool) -> None:
    before, later = [10 * MS, 20 * MS], [20 * MS, 40 * MS]
    assert has_drifted(before, [before] * (5 - after) + [later] * after) == drifted


def test_idle_time_that_only_moved_is_a_drift() -> None:
    assert has_drifted([40 * MS, 10 * MS], [[10 * MS, 40 * MS]] * 3)


def test_next_to_nothing_is_no_drift() -> None:
    assert not has_drifted([1_000], [[FLOOR_NS]] * 3)
    assert has_drifted([1_000], [[FLOOR_NS]] * 3, floor_ns=1_000)
    assert has_drifted([0], [[FLOOR_NS + 1]])


def test_the_threshold_is_the_callers() -> None:
    assert not has_drifted([100 * MS], [[150 * MS]], Fraction(1, 2))
    assert has_drifted([100 * MS], [[150 * MS + 1]], Fraction(1, 2))
    with pytest.raises(ValueError, match="threshold is 0: give a share above 0"):
        has_drifted([1], [[1]], Fraction(0))
    with pytest.raises(ValueError, match="floor_ns is -1"):
        has_drifted([1], [[1]], floor_ns=-1)
