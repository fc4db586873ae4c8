"""Placements: Algorithm 1, the ring, the balanced random one, and what a placement answers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_policy.placement import (
    KINDS,
    Placement,
    group_placement,
    place,
    random_placement,
    ring_placement,
)

SIZES = st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


def received(placement: Placement) -> list[int]:
    return [len(placement.shards_on(machine)) - 1 for machine in range(placement.machines)]


def test_algorithm_1_as_the_paper_draws_it() -> None:
    four = group_placement(4, 2)
    assert (four.kind, four.groups) == ("group", ((0, 1), (2, 3)))
    assert four.replicas == ((0, 1), (1, 0), (2, 3), (3, 2))
    five = group_placement(5, 2)  # Fig. 3
    assert (five.kind, five.groups) == ("mixed", ((0, 1), (2, 3, 4)))
    assert five.replicas == ((0, 1), (1, 0), (2, 3), (3, 4), (4, 2))


def test_ring_sends_to_the_next_machines() -> None:
    ring = ring_placement(4, 3)
    assert ring.groups == ((0, 1, 2, 3),)
    assert ring.replicas == ((0, 1, 2), (1, 2, 3), (2, 3, 0), (3, 0, 1))


@given(SIZES, st.sampled_from(KINDS), st.integers(0, 5))
def test_every_machine_sends_and_receives_as_many(
    size: tuple[int, int], strategy: str, seed: int
) -> None:
    machines, replicas = size
    placement = place(
        strategy, machines, replicas, rng=random.Random(seed), domains=list(range(machines))
    )
    assert (placement.machines, placement.replica_count) == size
    assert received(placement) == [replicas - 1] * machines
    for shard, holders in enumerate(placement.replicas):
        assert holders[0] == shard
        assert len(set(holders)) == replicas
        assert all(shard in placement.shards_on(holder) for holder in holders)


@given(SIZES)
def test_group_and_mixed_have_as_few_host_sets_as_theorem_1_says(size: tuple[int, int]) -> None:
    machines, replicas = size
    placement = place("mixed", machines, replicas)
    quotient, rest = divmod(machines, replicas)
    expected = quotient if rest == 0 else quotient - 1 + replicas + rest
    assert len(placement.host_sets()) == expected
    assert placement.kind == ("group" if rest == 0 else "mixed")


@given(SIZES, st.sampled_from(["group", "ring", "random"]), st.integers(0, 2**16))
def test_what_survives_is_what_loses_no_shard(
    size: tuple[int, int], strategy: str, seed: int
) -> None:
    rng = random.Random(seed)
    placement = place(strategy, *size, rng=rng)
    failed = set(rng.sample(range(size[0]), rng.randint(0, size[0])))
    lost = [
        shard
        for shard in range(size[0])
        if not any(holder not in failed for holder in placement.replicas[shard])
    ]
    assert placement.survives(failed) == (not lost)
    assert placement.survives(sorted(failed) * 2) == (not lost)
    if len(failed) < size[1]:
        assert placement.survives(failed)


def test_own_shard_comes_first_then_ascending() -> None:
    assert ring_placement(5, 3).shards_on(0) == (0, 3, 4)
    assert ring_placement(5, 3).shards_on(2) == (2, 0, 1)


def test_random_placement_depends_on_its_seed_only() -> None:
    first = random_placement(50, 4, random.Random(7))
    assert first == random_placement(50, 4, random.Random(7))
    assert first != random_placement(50, 4, random.Random(8))
    assert sorted(machine for group in first.groups for machine in group) == list(range(50))


def test_random_placement_fills_every_machine_when_all_hold_all() -> None:
    # The last rounds leave each sender one receiver: only augmenting paths get there.
    for machines in range(1, 13):
        placement = random_placement(machines, machines, random.Random(machines))
        assert all(set(row) == set(range(machines)) for row in placement.replicas)


def test_random_placement_is_not_one_fixed_pattern() -> None:
    offsets = {(row[1] - row[0]) % 30 for row in random_placement(30, 2, random.Random(1)).replicas}
    assert len(offsets) > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("group", 0, 1), "use at least 1"),
        (("ring", 4, 5), "use 1 to 4"),
        (("group", 4, 0), "use 1 to 4"),
        (("circle", 4, 2), "use one of group, mixed, ring, random, domains"),
        (("random", 4, 2), r"needs rng=random\.Random"),
        (("domains", 4, 2), "needs domains"),
    ],
)
def test_wrong_arguments_are_told_what_to_do(arguments: tuple[str, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        place(*arguments)


@pytest.mark.parametrize(
    ("replicas", "groups", "message"),
    [
        ((), (), "at least one machine"),
        (((1, 0), (0, 1)), ((0, 1),), "must start with machine 0"),
        (((0, 1), (1,)), ((0, 1),), "same number of copies"),
        (((0, 0), (1, 0)), ((0, 1),), "twice"),
        (((0, 2), (1, 0)), ((0, 1),), "outside 0..1"),
        (((0, -1), (1, 0)), ((0, 1),), "outside 0..1"),
        (((0, 1), (1, 0)), ((0,),), "exactly once"),
    ],
)
def test_impossible_placements_are_refused(
    replicas: tuple[tuple[int, ...], ...], groups: tuple[tuple[int, ...], ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Placement("hand", replicas, groups)


def test_unknown_machines_are_refused() -> None:
    placement = ring_placement(4, 2)
    with pytest.raises(ValueError, match="no machine 4"):
        placement.survives([4])
    with pytest.raises(ValueError, match="no machine -1"):
        placement.survives([-1])
    with pytest.raises(ValueError, match="no machine 9"):
        placement.shards_on(9)
