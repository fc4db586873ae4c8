"""Recovery plans: one whole iteration, live sources, spread load, and the same plan again."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import combinations, product

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castor_policy.placement import Placement, place
from castor_policy.recovery import (
    NO_ITERATION,
    NOTHING,
    OWN_MEMORY,
    OWN_ONLY,
    PEER,
    SCRATCH,
    STORAGE,
    TIERS,
    WHOLE,
    RecoveryPlan,
    Tier,
    assign_sources,
    choose,
    newest_safe,
    plan_recovery,
    sources_at_once,
)

Holdings = dict[int, dict[int, set[int]]]

# One draw instead of three, the smallest first: hypothesis spends its time on draws.
placements = st.sampled_from(
    [
        place(strategy, machines, replicas)
        for machines in range(1, 8)
        for replicas in range(1, min(4, machines) + 1)
        for strategy in ("group", "ring")
    ]
)
# Whole holdings most of the time, or memory would hardly ever be usable.
some_of_3_to_5 = st.sampled_from(
    [{3, 4}, {4, 5}] * 8
    + [set(few) for count in range(4) for few in combinations((3, 4, 5), count)]
)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Placement, Holdings, int | None]:
    """Some machines dead; the others hold some of the iterations 3 to 5 of some of their shards."""
    placement = draw(placements)
    holdings: Holdings = {}
    for machine in range(placement.machines):
        if draw(st.integers(0, 3)):
            holdings[machine] = {
                rank: set(draw(some_of_3_to_5)) for rank in placement.shards_on(machine)
            }
    return placement, holdings, draw(st.sampled_from([None, 2, 4, 6]))


def held(placement: Placement, holdings: Holdings, rank: int) -> set[int]:
    found: set[int] = set()
    for machine in placement.replicas[rank]:
        found |= holdings.get(machine, {}).get(rank, set())
    return found


def copies(placement: Placement, holdings: Holdings, iteration: int) -> set[tuple[int, int]]:
    found = set()
    for rank in range(placement.machines):
        for machine in placement.replicas[rank]:
            if iteration in holdings.get(machine, {}).get(rank, ()):
                found.add((machine, rank))
    return found


@settings(max_examples=4 * settings.default.max_examples)
@given(situations())
def test_it_is_the_newest_iteration_that_every_rank_can_load_and_none_older_is_safer(
    situation,
) -> None:
    placement, holdings, persistent = situation
    common = set.intersection(*(held(placement, holdings, r) for r in range(placement.machines)))
    plan = plan_recovery(placement, holdings, persistent)
    safe = [
        i
        for i in common
        if all(
            copies(placement, holdings, i) >= copies(placement, holdings, j)
            for j in common & set(range(i))
        )
    ]
    newest = max(safe, default=None)
    if newest is not None and (persistent is None or newest >= persistent):
        assert plan.iteration == newest
        assert plan.tier in (Tier.OWN_MEMORY, Tier.PEER)
    elif persistent is not None:
        assert (plan.iteration, plan.tier, plan.peers) == (persistent, Tier.STORAGE, {})
    else:
        assert (plan.iteration, plan.tier, plan.peers) == (0, Tier.SCRATCH, {})


def test_an_iteration_in_flight_is_not_taken_for_one_that_is_whole() -> None:
    """Seed 897 of `castor explore`: then machine 0 is lost, and shard 0 at iteration 2 with it."""
    placement = place("group", 4, 2)
    whole = {m: {rank: {1} for rank in placement.shards_on(m)} for m in range(4)}
    in_flight = {
        m: {rank: set(held) for rank, held in shards.items()} for m, shards in whole.items()
    }
    for machine, rank in ((0, 0), (0, 1), (1, 1), (2, 2), (3, 2), (3, 3)):
        in_flight[machine][rank].add(2)
    assert plan_recovery(placement, in_flight, None).iteration == 1
    for machine, rank in ((1, 0), (2, 3)):
        in_flight[machine][rank].add(2)
    assert plan_recovery(placement, in_flight, None).iteration == 2


@settings(max_examples=4 * settings.default.max_examples)
@given(situations())
def test_every_source_is_alive_and_holds_that_very_iteration(situation) -> None:
    placement, holdings, persistent = situation
    plan = plan_recovery(placement, holdings, persistent)
    served = dict.fromkeys(range(placement.machines), 0)
    for rank in range(placement.machines):
        tier, peer = plan.source(rank)
        if plan.tier in (Tier.STORAGE, Tier.SCRATCH):
            # All or nobody: iterations are never mixed.
            assert (tier, peer) == (plan.tier, None)
        elif tier == Tier.OWN_MEMORY:
            assert plan.iteration in holdings[rank][rank]
        else:
            assert tier == Tier.PEER
            assert peer is not None
            assert peer != rank
            assert plan.iteration not in holdings.get(rank, {}).get(rank, set())
            assert plan.iteration in holdings[peer][rank]
            assert peer in placement.replicas[rank]
            served[peer] += 1
    assert plan.heaviest_load == max(served.values())
    assert (plan.tier == Tier.PEER) == bool(plan.peers)


@given(situations())
def test_the_plan_made_again_is_the_same_plan(situation) -> None:
    placement, holdings, persistent = situation
    plan = plan_recovery(placement, holdings, persistent)
    reordered = {machine: holdings[machine] for machine in sorted(holdings, reverse=True)}
    assert plan_recovery(placement, reordered, persistent) == plan


@given(situations())
def test_carried_out_half_or_whole_it_leads_to_the_same_iteration(situation) -> None:
    """A failure in a recovery loses nothing: what ranks have loaded only adds to what is held."""
    placement, holdings, persistent = situation
    plan = plan_recovery(placement, holdings, persistent)
    if plan.tier not in (Tier.OWN_MEMORY, Tier.PEER):
        return
    for count in range(len(plan.peers) + 1):
        now = {machine: dict(shards) for machine, shards in holdings.items()}
        for rank in list(plan.peers)[:count]:
            shards = now.setdefault(rank, {})
            shards[rank] = shards.get(rank, set()) | {plan.iteration}
        again = plan_recovery(placement, now, persistent)
        assert again.iteration == plan.iteration
        assert set(again.peers) == set(list(plan.peers)[count:])
    assert again == RecoveryPlan(plan.iteration, Tier.OWN_MEMORY, {}, 0)


def lightest(able: list[list[int]]) -> int:
    """The best possible heaviest load: every assignment tried."""
    return min((max(map(choice.count, choice), default=0) for choice in product(*able)), default=0)


@settings(max_examples=3 * settings.default.max_examples)
@given(placements, st.data())
def test_the_load_is_near_the_best_possible(placement: Placement, data) -> None:
    """Greedy takes ranks in their order, so it is not always optimal (see the test below); with
    groups, whose members are alike, it is.
    """
    machines = placement.machines
    dead = data.draw(st.sets(st.integers(0, machines - 1), max_size=5))
    if not placement.survives(dead):
        return
    holdings = {
        machine: {rank: {1} for rank in placement.shards_on(machine)}
        for machine in range(machines)
        if machine not in dead
    }
    plan = plan_recovery(placement, holdings, None)
    lost = sorted(dead)
    able = [[h for h in placement.replicas[rank] if h not in dead] for rank in lost]
    best = lightest(able)
    assert set(plan.peers) == dead
    assert best <= plan.heaviest_load
    if placement.kind == "group":
        assert plan.heaviest_load == best
    # Greedy assignment of unit jobs to allowed machines: within 1 + ceil(log2(machines)) of the
    # best (Azar, Naor and Rom, "The competitiveness of on-line assignments", 1995).
    assert plan.heaviest_load <= best * (1 + (machines - 1).bit_length())


def fetched_by(asked: dict[int, tuple[int, ...]]) -> Fraction:
    """When the last shard has come, in times that one takes over a link.

    Holders share theirs evenly between those that still fetch; what one of them cannot take up,
    for its own link is full, nobody gets.
    """
    now, left = Fraction(0), dict.fromkeys(asked, Fraction(1))
    while left:
        busy = Counter(holder for rank in left for holder in asked[rank])
        rates = {
            rank: min(Fraction(1), sum((Fraction(1, busy[h]) for h in asked[rank]), Fraction(0)))
            for rank in left
        }
        step = min(left[rank] / rates[rank] for rank in left)
        now += step
        left = {r: left[r] - step * rates[r] for r in left if left[r] > step * rates[r]}
    return now


@settings(max_examples=3 * settings.default.max_examples)
@given(placements, st.data())
def test_all_holders_at_once_take_no_longer_than_the_plans_one(placement: Placement, data) -> None:
    machines = placement.machines
    dead = data.draw(st.sets(st.integers(0, machines - 1), min_size=1, max_size=5))
    if not placement.survives(dead):
        return
    live = [machine for machine in range(machines) if machine not in dead]
    holdings = {machine: {rank: {1} for rank in placement.shards_on(machine)} for machine in live}
    plan = plan_recovery(placement, holdings, None)
    able = [[machine for machine in row if machine not in dead] for row in placement.replicas]
    firsts = [plan.peers.get(rank, rank) for rank in range(machines)]
    planned = [
        (first, *(machine for machine in row if machine != first))
        for first, row in zip(firsts, able, strict=True)
    ]
    asked = {rank: sources_at_once(planned, rank, planned[rank]) for rank in dead}
    for rank, holders in asked.items():
        assert holders[0] == plan.peers[rank]
        assert set(holders) <= set(able[rank])
        if dead == {rank}:
            assert set(holders) == set(able[rank])
    assert fetched_by(asked) <= plan.heaviest_load


def test_who_is_planned_for_another_is_left_to_it() -> None:
    # Ring of 5 with m = 3, 0 and 1 are lost: 0 can only be had from 2, and 1 from 2 and 3.
    planned = [(2,), (3, 2), (2, 3, 4), (3, 4), (4,)]
    assert sources_at_once(planned, 1, (3, 2)) == (3,)
    assert sources_at_once(planned, 1, (2,)) == (2,)
    assert fetched_by({0: (2,), 1: (3,)}) == 1
    assert fetched_by({0: (2,), 1: (3, 2)}) == Fraction(3, 2)


def test_greedy_may_miss_the_best_spread() -> None:
    # Ring of 5 with m = 3: rank 1 can take 2 or 3, rank 0 only 2 (1 is dead). In rank order rank
    # 0 takes 2, and rank 1 then 3: best. The other way round rank 1 would take 2 as well.
    placement = place("ring", 5, 3)
    state = [NOTHING, NOTHING, WHOLE, WHOLE, WHOLE]
    for lost, heaviest in (([0, 1], 1), ([1, 0], 2)):
        sources, load = [0, 0], [0] * 5
        assert assign_sources(lost, 2, placement.replicas, state, load, sources) == heaviest
        assert load == [0] * 5
        assert lightest([[2], [2, 3]]) == 1


@settings(max_examples=3 * settings.default.max_examples)
@given(placements, st.sampled_from([None, 0, 1, 7, 8]), st.data())
def test_the_engines_question_and_the_plan_agree(placement: Placement, persistent, data) -> None:
    """`choose` over memory states is `plan_recovery` over what machines hold."""
    machines = placement.machines
    state = data.draw(
        st.lists(st.sampled_from([WHOLE, WHOLE, OWN_ONLY, NOTHING]),
                 min_size=machines, max_size=machines)
    )  # fmt: skip
    holdings: Holdings = {}
    for machine, memory in enumerate(state):
        if memory != NOTHING:
            shards = placement.shards_on(machine) if memory == WHOLE else (machine,)
            holdings[machine] = {rank: {7} for rank in shards}
    lost = [machine for machine in range(machines) if state[machine] == NOTHING]
    sources, load = [0] * len(lost), [0] * machines
    stored = NO_ITERATION if persistent is None else persistent
    asked = (7, WHOLE, stored, lost, len(lost), placement.replicas, state, load, sources)
    iteration, tier, heaviest = choose(*asked)
    plan = plan_recovery(placement, holdings, persistent)
    assert load == [0] * machines
    assert (plan.iteration, plan.tier, plan.heaviest_load) == (iteration, TIERS[tier], heaviest)
    assert plan.peers == (dict(zip(lost, sources, strict=True)) if tier == PEER else {})


def test_the_codes_name_the_tiers() -> None:
    codes = [OWN_MEMORY, PEER, STORAGE, SCRATCH]
    assert [TIERS[code] for code in codes] == list(Tier)
    assert [str(tier) for tier in TIERS] == ["own_memory", "peer", "storage", "scratch"]


COMPILED_NEWEST_SAFE = numba.njit(newest_safe)


@given(st.integers(1, 6).flatmap(
    lambda places: st.lists(st.lists(st.booleans(), min_size=places, max_size=places), max_size=5)
))  # fmt: skip
def test_compiled_the_newest_safe_candidate_is_the_same(copies: list[list[bool]]) -> None:
    places = len(copies[0]) if copies else 1
    rows = np.array(copies, dtype=np.int64).reshape(len(copies), places)
    assert COMPILED_NEWEST_SAFE(rows) == newest_safe(copies)


def test_a_checkpoint_of_the_start_is_one_and_none_is_none() -> None:
    nobody = ([], 0, ((0,),), [NOTHING], [0], [])
    assert choose(NO_ITERATION, NOTHING, 0, *nobody) == (0, STORAGE, 0)
    assert choose(NO_ITERATION, NOTHING, NO_ITERATION, *nobody) == (0, SCRATCH, 0)
    assert choose(0, WHOLE, 0, *nobody) == (0, OWN_MEMORY, 0)
    assert plan_recovery(place("group", 1, 1), {}, 0) == RecoveryPlan(0, Tier.STORAGE, {}, 0)


def test_memory_wins_over_storage_of_the_same_iteration() -> None:
    placement = place("group", 2, 2)
    holdings = {0: {0: {4}, 1: {4}}, 1: {0: {4}, 1: {4}}}
    assert plan_recovery(placement, holdings, 4).tier == Tier.OWN_MEMORY
    assert plan_recovery(placement, holdings, 5) == RecoveryPlan(5, Tier.STORAGE, {}, 0)


def test_two_buffers_always_leave_a_common_iteration() -> None:
    # A failure while 5 travels: some shards have 4 and 5, others 3 and 4 (invariant 2).
    placement = place("group", 4, 2)
    holdings = {m: {r: {4, 5} for r in placement.shards_on(m)} for m in (0, 1)}
    holdings |= {m: {r: {3, 4} for r in placement.shards_on(m)} for m in (2, 3)}
    assert plan_recovery(placement, holdings, 1) == RecoveryPlan(4, Tier.OWN_MEMORY, {}, 0)
    del holdings[1]
    assert plan_recovery(placement, holdings, 1) == RecoveryPlan(4, Tier.PEER, {1: 0}, 1)
    del holdings[0]
    assert plan_recovery(placement, holdings, 1) == RecoveryPlan(1, Tier.STORAGE, {}, 0)


@pytest.mark.parametrize("tier", [Tier.STORAGE, Tier.SCRATCH])
def test_all_ranks_share_the_source_of_such_a_plan(tier: Tier) -> None:
    plan = RecoveryPlan(3, tier, {}, 0)
    assert [plan.source(rank) for rank in range(4)] == [(tier, None)] * 4
