"""Which rank the others wait for, and whose loss was not finite first; and who is not named."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from castor_policy.membership import WatchLimits
from castor_policy.odd_loss import OddLoss
from castor_policy.slow_ranks import Costs, SlowRank

LIMITS = WatchLimits(slow_share=0.2, slow_looks=3)
EVEN = (0.5, 0.5, 0.5, 0.5)
SLOW = (0.5, 0.9, 0.5, 0.5)
"""Rank 1 is; with 0.1 s of waiting for all, an iteration takes 1 s."""


def told(
    iterations: Sequence[Sequence[float]], rank: int = 1, limits: WatchLimits = LIMITS
) -> list[tuple[int, Costs]]:
    """Return what is told of a rank, behind the number of the iteration."""
    watch, found = SlowRank(rank, limits), []
    for number, own_s in enumerate(iterations, 1):
        costs = watch.observe(max(own_s) + 0.1, own_s)
        if costs is not None:
            found.append((number, costs))
    return found


def test_a_rank_that_others_wait_for_is_told_when_it_begins_and_when_it_ends() -> None:
    # An even iteration takes 0.6 s: two are a look.
    found = told([*4 * [EVEN], *5 * [SLOW], *6 * [EVEN]])
    [(begun, costs), (over, cost)] = found
    assert (begun, over) == (7, 15), "the third look in a row"
    assert not costs.is_over
    assert (costs.own_s, costs.others_s) == (pytest.approx(0.9), 0.5)
    assert costs.costs_s == costs.share == pytest.approx(0.4)
    assert (costs.iterations, costs.lost_s) == (3, pytest.approx(1.2))
    assert cost.is_over
    assert (cost.iterations, cost.lost_s) == (5, pytest.approx(2.0)), "of all the time it was slow"


def test_nobody_else_is_told() -> None:
    assert not told(20 * [SLOW], rank=0)


def test_short_iterations_are_judged_by_the_second() -> None:
    """A rank that is stopped now and then: five iterations of 0.11 s, then one of 0.71 s."""
    cycle = [*5 * [(0.01,) * 4], (0.01, 0.61, 0.01, 0.01)]
    [(_, costs)] = told(10 * cycle)
    assert costs.costs_s == pytest.approx(0.1)
    assert costs.iterations == 3 * 6


def test_a_pause_is_no_slow_rank_and_a_slow_one_that_is_not_for_once_is_still() -> None:
    pause = (0.5, 9.0, 0.5, 0.5)
    assert not told(10 * [*10 * [EVEN], pause])
    found = told([*5 * [SLOW], *2 * [EVEN], *5 * [SLOW]])
    assert len(found) == 1
    assert not found[0][1].is_over


def test_where_most_are_slow_there_is_nobody_to_name() -> None:
    assert told(20 * [(0.9, 0.9, 0.5, 0.5)]), "a machine of two ranks beside another"
    assert not told(20 * [(0.9, 0.9, 0.9, 0.5)])


def test_what_it_costs_counts_and_not_how_much_slower_it_is() -> None:
    """Half again as slow, in an iteration that all spend waiting for the network."""
    watch = SlowRank(1, LIMITS)
    assert not any(watch.observe(2.0, (0.2, 0.3, 0.2, 0.2)) for _ in range(20))


def test_noise_names_nobody_in_a_thousand_iterations() -> None:
    """Each rank's time varies by half, from one iteration to the next, on a loaded machine."""
    draw = random.Random(3)
    ranks = [SlowRank(rank, WatchLimits()) for rank in range(4)]
    for _ in range(1000):
        own_s = [0.05 * draw.lognormvariate(0.0, 0.5) for _ in ranks]
        assert not any(one.observe(max(own_s) + 0.01, own_s) for one in ranks)


@pytest.mark.parametrize("limits", [WatchLimits(slow_share=0.0), WatchLimits(slow_share=0.5)])
def test_the_share_is_settable(limits: WatchLimits) -> None:
    assert not told(50 * [SLOW], limits=limits)


def test_a_rank_alone_has_nobody_who_waits() -> None:
    assert not told(50 * [(1.0,)], rank=0)


@pytest.mark.parametrize(
    ("odd", "named"),
    [
        ((0, 0, 7, 0), {2}),
        ((0, 0, 0, 0), set()),
        ((7, 7, 7, 7), set()),
        ((7, 7, 0, 0), set()),  # half of them
        ((9, 8, 7, 8), {2}),  # of more iterations than one: an update has spread it
        ((8, 7, 7, 8, 8), {1, 2}),  # ranks that work on one sample
    ],
)
def test_who_lost_its_numbers_first(odd: tuple[int, ...], named: set[int]) -> None:
    assert {rank for rank in range(len(odd)) if OddLoss(rank).observe(odd)} == named


def test_it_is_told_once_until_all_are_finite_again() -> None:
    watch = OddLoss(0)
    said = [watch.observe(one) for one in ((1, 0, 0), (2, 0, 0), (3, 3, 3), (4, 0, 0))]
    assert said == [True, False, False, False]
    assert not watch.observe((0, 0, 0))
    assert watch.observe((6, 0, 0))
