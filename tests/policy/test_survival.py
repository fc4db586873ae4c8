"""Survival of simultaneous failures: brute force, the paper's numbers, and the theorems."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction
from math import ceil, comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castor_policy import survival_counting
from castor_policy.host_sets import connected_groups
from castor_policy.placement import Placement, place
from castor_policy.survival import (
    ExactCountTooLargeError,
    RecoveryProbability,
    corollary1_bound,
    estimate_recovery_probability,
    exact_or_estimate,
    independent_recovery_probability,
    published_ring_formula,
    recovery_probability,
    theorem1_gap,
    upper_bound,
    wilson_interval,
)
from castor_policy.survival_counting import components


def by_brute_force(placement: Placement) -> list[Fraction]:
    """Probability for 0..N failures, over all subsets."""
    machines = placement.machines
    hosts = [sum(1 << machine for machine in row) for row in placement.replicas]
    recoverable = [0] * (machines + 1)
    for failed in range(1 << machines):
        if not any(failed & holders == holders for holders in hosts):
            recoverable[failed.bit_count()] += 1
    return [Fraction(n, comb(machines, failed)) for failed, n in enumerate(recoverable)]


def check(placement: Placement) -> None:
    expected = by_brute_force(placement)
    machines = placement.machines
    assert [recovery_probability(placement, k) for k in range(machines + 1)] == expected
    q = Fraction(2, 7)
    assert independent_recovery_probability(placement, q) == sum(
        probability * comb(machines, k) * q**k * (1 - q) ** (machines - k)
        for k, probability in enumerate(expected)
    )


@pytest.mark.parametrize("machines", range(1, 11))
def test_every_small_placement_against_all_subsets(machines: int) -> None:
    for replicas in range(1, min(machines, 4) + 1):
        rng = random.Random(machines * 10 + replicas)
        for strategy in ("group", "mixed", "ring", "random", "random", "domains"):
            domains = [rng.randrange(3) for _ in range(machines)]
            check(place(strategy, machines, replicas, rng=rng, domains=domains))


@st.composite
def arbitrary_placements(draw: st.DrawFn) -> Placement:
    machines = draw(st.integers(1, 9))
    copies = draw(st.integers(1, min(4, machines)))
    rows = []
    for shard in range(machines):
        others = draw(st.permutations([m for m in range(machines) if m != shard]))
        rows.append((shard, *others[: copies - 1]))
    return Placement("hand", tuple(rows), connected_groups(rows))


@given(arbitrary_placements())
def test_arbitrary_placements_against_all_subsets(placement: Placement) -> None:
    check(placement)


@given(arbitrary_placements(), st.integers(0, 9))
@settings(max_examples=50)
def test_both_ways_to_count_a_component_agree(placement: Placement, failures: int) -> None:
    for part in components(placement.replicas):
        if part.kind == "other":
            most = min(failures, part.machines)
            by_frontier = survival_counting._count_by_frontier(part, most)
            assert by_frontier == survival_counting._count_by_unions(part, most)


def test_a_ring_in_any_order_is_recognised() -> None:
    order = list(range(12))
    random.Random(3).shuffle(order)
    rows: list[tuple[int, ...]] = [()] * 12
    for position, machine in enumerate(order):
        rows[machine] = tuple(order[(position + step) % 12] for step in range(3))
    placement = Placement("hand", tuple(rows), (tuple(range(12)),))
    assert [part.kind for part in components(placement.replicas)] == ["ring"]
    check(placement)


# Fig. 9, in per cent: group k=2, k=3; ring k=2, k=3 as plotted, k=3 exact.
FIG_9 = {
    16: (93.33, 80.00, 86.67, 60.00, 62.86),
    32: (96.77, 90.32, 93.55, 80.65, 81.29),
    64: (98.41, 95.24, 96.83, 90.48, 90.63),
    128: (99.21, 97.64, 98.43, 95.28, 95.31),
}


@pytest.mark.parametrize("machines", FIG_9)
def test_fig_9(machines: int) -> None:
    group, ring = place("group", machines, 2), place("ring", machines, 2)
    ours = (
        recovery_probability(group, 2),
        recovery_probability(group, 3),
        published_ring_formula(machines, 2, 2),
        published_ring_formula(machines, 2, 3),
        recovery_probability(ring, 3),
    )
    for value, published in zip(ours, FIG_9[machines], strict=True):
        assert abs(100 * value - Fraction(published)) <= Fraction(51, 10_000)
    assert recovery_probability(ring, 2) == ours[2]


def test_the_numbers_of_sixteen_machines() -> None:
    group, ring = place("group", 16, 2), place("ring", 16, 2)
    assert recovery_probability(group, 3) == Fraction(4, 5)
    assert recovery_probability(ring, 3) == Fraction(22, 35)
    assert published_ring_formula(16, 2, 3) == Fraction(3, 5)
    for failures in range(17):
        expected = Fraction(2**failures * comb(8, failures), comb(16, failures))
        assert recovery_probability(group, failures) == expected
    assert corollary1_bound(16, 2, 4) == Fraction(3, 5)
    assert corollary1_bound(16, 2, 6) == 0


@given(st.integers(1, 60), st.data())
def test_theorem_1(machines: int, data: st.DataObject) -> None:
    replicas = data.draw(st.integers(1, machines))
    reached = recovery_probability(place("mixed", machines, replicas), replicas)
    bound, gap = upper_bound(machines, replicas), theorem1_gap(machines, replicas)
    assert bound == 1 - Fraction(ceil(machines / replicas), comb(machines, replicas))
    assert reached == bound - gap
    if machines % replicas == 0:
        assert gap == 0
    else:
        assert 0 < gap <= Fraction(2 * replicas - 3, comb(machines, replicas))


@pytest.mark.parametrize(
    ("machines", "replicas", "excess"),
    [(5, 2, 1), (7, 2, 1), (9, 2, 1), (8, 3, 3), (10, 3, 2), (11, 3, 3), (11, 4, 5)],
)
def test_the_excess_that_paper_md_lists(machines: int, replicas: int, excess: int) -> None:
    assert theorem1_gap(machines, replicas) == Fraction(excess, comb(machines, replicas))


@given(st.integers(1, 40), st.data())
def test_corollary_1_is_a_lower_bound_and_exact_below_twice_m(
    machines: int, data: st.DataObject
) -> None:
    replicas = data.draw(st.integers(1, machines))
    failures = data.draw(st.integers(0, machines))
    exact = recovery_probability(place("group", machines, replicas), failures)
    bound = corollary1_bound(machines, replicas, failures)
    assert bound <= exact
    if machines % replicas == 0 and failures < 2 * replicas:
        assert bound == exact
    ring = recovery_probability(place("ring", machines, replicas), failures)
    assert published_ring_formula(machines, replicas, failures) <= ring
    assert ring <= exact


@given(st.sampled_from(["group", "ring"]), st.integers(1, 30), st.data())
def test_more_failures_never_help(strategy: str, machines: int, data: st.DataObject) -> None:
    placement = place(strategy, machines, data.draw(st.integers(1, machines)))
    values = [recovery_probability(placement, failures) for failures in range(machines + 1)]
    assert all(later <= before for before, later in itertools.pairwise(values))
    assert values[: placement.replica_count] == [1] * placement.replica_count
    assert values[machines] == 0


@given(st.integers(1, 8), st.integers(1, 3), st.integers(1, 3), st.data())
def test_more_copies_never_hurt_groups(
    groups: int, replicas: int, factor: int, data: st.DataObject
) -> None:
    # Groups of a multiple of m machines contain the smaller ones, so m | N and m' | N are needed.
    machines = groups * replicas * factor
    failures = data.draw(st.integers(0, machines))
    few = recovery_probability(place("group", machines, replicas), failures)
    assert few <= recovery_probability(place("group", machines, replicas * factor), failures)


@pytest.mark.long
def test_thousands_of_machines_are_exact() -> None:
    # Against the closed form for pairs, and one ring count against a recurrence.
    group = place("group", 4096, 2)
    assert recovery_probability(group, 1000) == Fraction(
        2**1000 * comb(2048, 1000), comb(4096, 1000)
    )
    ring = place("ring", 4096, 2)
    # No two neighbours on a circle: the problème des ménages' count.
    expected = Fraction(4096 * comb(4096 - 700, 700), (4096 - 700) * comb(4096, 700))
    assert recovery_probability(ring, 700) == expected
    mixed = place("mixed", 4095, 4)
    assert 0 < recovery_probability(mixed, 2048) < recovery_probability(group, 300)
    assert recovery_probability(place("mixed", 4095, 2000), 1999) == 1


def test_many_equal_entangled_components_are_exact() -> None:
    # Three machines in a row, where the middle one keeps both neighbours' shards: a shard is lost
    # with the middle and a neighbour. A component survives 0 or 1 failures, or both neighbours.
    rows = [row for i in range(0, 900, 3) for row in ((i, i + 1), (i + 1, i), (i + 2, i + 1))]
    placement = Placement("hand", tuple(rows), connected_groups(rows))
    failures = 200
    ways = sum(
        comb(300, pairs) * comb(300 - pairs, failures - 2 * pairs) * 3 ** (failures - 2 * pairs)
        for pairs in range(failures // 2 + 1)
    )
    assert recovery_probability(placement, failures) == Fraction(ways, comb(900, failures))


@pytest.mark.long
def test_what_cannot_be_counted_is_estimated() -> None:
    placement = place("random", 120, 4, rng=random.Random(5))
    with pytest.raises(ExactCountTooLargeError, match="use estimate_recovery_probability"):
        recovery_probability(placement, 60)
    found = exact_or_estimate(placement, 20, samples=2000, rng=random.Random(1))
    assert found.method == "monte-carlo"
    assert found.estimate is not None
    assert found.estimate.low < found.probability < found.estimate.high
    assert found == exact_or_estimate(placement, 20, samples=2000, rng=random.Random(1))
    assert exact_or_estimate(placement, 4, samples=1, rng=random.Random(1)).method == "exact"


def test_estimates_cover_the_exact_value() -> None:
    # 200 intervals of 95 %: fewer than 178 hits has a probability below 1e-4 (binomial).
    placement = place("ring", 12, 2)
    exact = recovery_probability(placement, 4)
    rng = random.Random(11)
    estimates = [
        estimate_recovery_probability(placement, 4, samples=150, rng=rng) for _ in range(200)
    ]
    assert sum(estimate.low <= exact <= estimate.high for estimate in estimates) >= 178


def test_wilson_interval() -> None:
    # Newcombe (1998), Table I: 81 of 263 and 15 of 148.
    first, second = wilson_interval(81, 263), wilson_interval(15, 148)
    assert (round(first.low, 4), round(first.high, 4)) == (0.2553, 0.3662)
    assert (round(second.low, 4), round(second.high, 4)) == (0.0624, 0.1605)
    assert wilson_interval(0, 10).low == 0
    assert wilson_interval(10, 10).high == 1
    assert wilson_interval(10, 10).low > 0.7


def test_wrong_numbers_are_told_what_to_do() -> None:
    placement = place("ring", 6, 2)
    for call in (
        lambda: recovery_probability(placement, 7),
        lambda: recovery_probability(placement, -1),
        lambda: estimate_recovery_probability(placement, 7, samples=5, rng=random.Random(1)),
        lambda: corollary1_bound(6, 7, 1),
        lambda: published_ring_formula(6, 2, 7),
        lambda: upper_bound(6, 0),
        lambda: wilson_interval(0, 0),
        lambda: wilson_interval(3, 2),
        lambda: independent_recovery_probability(placement, 1.5),
    ):
        with pytest.raises(ValueError, match="; use "):
            call()
    with pytest.raises(ValueError, match="either"):
        RecoveryProbability(None, None)


@pytest.mark.long
@pytest.mark.timeout(120)
def test_a_hundred_thousand_machines_at_random_are_sampled_and_not_counted() -> None:
    """Counting them took eight minutes and then all memory; it is refused before it begins."""
    placement = place("random", 100_000, 3, rng=random.Random(1))
    with pytest.raises(ExactCountTooLargeError):
        recovery_probability(placement, 300)
    found = exact_or_estimate(placement, 300, samples=20, rng=random.Random(2))
    assert found.method != "exact"
