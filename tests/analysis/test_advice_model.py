"""The closed forms behind advice: against brute force, event simulation and known values."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from castor_analysis.advice.model import (
    LONGEST_STORAGE_S,
    SHORTEST_STORAGE_S,
    STANDBY_SHORTAGE,
    UNNOTICED,
    erlang_loss,
    group_losses_per_s,
    joint_losses_per_s,
    memory_need_bytes,
    racks_survived,
    standbys_for,
    storage_interval,
    waiting_share,
)
from castor_policy.frequency_two_tier import TwoTier, two_tier_effective_ratio
from castor_policy.placement import Placement, group_placement, place


def counted_losses(
    placement: Placement,
    *,
    machine_rate: float,
    window: float,
    domains: Sequence[int],
    domain_rate: float,
    losses: int,
    rng: random.Random,
) -> tuple[int, float]:
    """Let machines and domains fail and come back until so many times a shard has been lost.

    Returns how often the state turned from survivable to not, and the time that it took.
    """
    kinds = [("machine", machine, machine_rate) for machine in range(placement.machines)]
    kinds += [("domain", domain, domain_rate) for domain in sorted(set(domains)) if domain_rate]
    rate_of = {(kind, number): rate for kind, number, rate in kinds}
    events = [(rng.expovariate(rate), kind, number, True) for kind, number, rate in kinds]
    heapq.heapify(events)
    down: set[tuple[str, int]] = set()
    found, now, survivable = 0, 0.0, True
    while found < losses:
        now, kind, number, fails = heapq.heappop(events)
        if fails:
            down.add((kind, number))
            heapq.heappush(events, (now + window, kind, number, False))
        else:
            down.discard((kind, number))
            heapq.heappush(
                events, (now + rng.expovariate(rate_of[kind, number]), kind, number, True)
            )
        failed = {
            machine
            for machine in range(placement.machines)
            if ("machine", machine) in down or ("domain", domains[machine]) in down
        }
        before, survivable = survivable, placement.survives(failed)
        found += before and not survivable
    return found, now


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "machines", "replicas", "size", "machine_rate", "domain_rate"),
    [
        ("group", 6, 2, 1, 0.02, 0.0),
        ("ring", 7, 2, 1, 0.01, 0.0),
        ("group", 7, 3, 1, 0.05, 0.0),
        ("group", 8, 2, 4, 0.01, 0.004),
        ("domains", 8, 2, 4, 0.01, 0.004),
        ("group", 8, 2, 2, 0.004, 0.01),
        ("domains", 9, 3, 3, 0.02, 0.02),
        ("group", 5, 1, 1, 0.02, 0.0),
    ],
)
def test_group_losses_agree_with_an_event_simulation(
    kind: str, machines: int, replicas: int, size: int, machine_rate: float, domain_rate: float
) -> None:
    domains = [machine // size for machine in range(machines)]
    placement = place(kind, machines, replicas, domains=domains)
    window = 1.0
    expected = group_losses_per_s(
        placement,
        machine_rate_per_s=machine_rate,
        window_s=window,
        domains=domains if domain_rate else None,
        domain_rate_per_s=domain_rate,
    )
    counted, time = counted_losses(
        placement,
        machine_rate=machine_rate,
        window=window,
        domains=domains,
        domain_rate=domain_rate,
        losses=900,
        rng=random.Random(7),
    )
    # 900 counts have a standard deviation of 3.3 %; four of them, and what the sum over host
    # sets counts twice: a loss while another is on, which has the chance of the losses' rate
    # times the window.
    assert expected == pytest.approx(counted / time, rel=4 / 30 + 2 * machines * expected * window)


def test_a_domain_that_holds_all_copies_counts_once_and_a_spread_one_not() -> None:
    domains = [0, 0, 0, 0, 1, 1, 1, 1]
    options = {"machine_rate_per_s": 0.0, "window_s": 10.0, "domain_rate_per_s": 1e-9}
    packed = group_losses_per_s(group_placement(8, 2), domains=domains, **options)
    assert packed == pytest.approx(2e-9, rel=1e-6)
    spread = place("domains", 8, 2, domains=domains)
    # Both domains down within 10 s of each other: four host sets, each counted.
    assert group_losses_per_s(spread, domains=domains, **options) == pytest.approx(
        4 * 2 * 1e-9 * 1e-8, rel=1e-6
    )
    assert racks_survived(group_placement(8, 2), domains) == 0.0
    assert racks_survived(spread, domains) == 1.0
    assert racks_survived(group_placement(8, 4), [0, 0, 0, 0, 0, 1, 1, 1]) == 0.5


def test_bad_rates_are_refused() -> None:
    placement = group_placement(4, 2)
    with pytest.raises(ValueError, match="0 or more"):
        group_losses_per_s(placement, machine_rate_per_s=-1.0, window_s=1.0)
    with pytest.raises(ValueError, match="names 3 machines"):
        group_losses_per_s(placement, machine_rate_per_s=1.0, window_s=1.0, domains=[0, 0, 1])
    with pytest.raises(ValueError, match="negative"):
        standbys_for(-0.1, 4)


def test_joint_losses_weigh_each_group_by_its_chance() -> None:
    placement = group_placement(4, 2)
    # Of the 6 pairs, 2 are groups; three machines always hold one; more than 4 are all.
    assert joint_losses_per_s(placement, [2], 10.0) == pytest.approx(2 / 6 / 10)
    assert joint_losses_per_s(placement, [2, 2, 3, 9], 10.0) == pytest.approx((2 / 3 + 2) / 10)
    assert joint_losses_per_s(placement, [], 10.0) == 0.0


def test_memory_need_is_the_papers() -> None:
    shard = 75_215_382_528  # GPT-2 100B on 16 machines
    assert memory_need_bytes(group_placement(16, 2), shard) == 4 * shard
    assert round(4 * shard / 1e9) == 301
    assert memory_need_bytes(group_placement(16, 1), shard) == 2 * shard
    assert memory_need_bytes(group_placement(17, 3), shard) == 6 * shard


def test_memory_need_is_that_of_the_fullest_machine() -> None:
    crowded = Placement("random", ((0, 2), (1, 2), (2, 0)), ((0, 1, 2),))
    assert memory_need_bytes(crowded, 10) == 2 * 3 * 10


@given(st.floats(0.001, 60.0), st.integers(0, 80))
def test_erlangs_formula_and_the_poisson_tail(load: float, standbys: int) -> None:
    terms = [n * math.log(load) - math.lgamma(n + 1) for n in range(standbys + 1)]
    direct = math.exp(terms[-1]) / math.fsum(map(math.exp, terms))
    assert erlang_loss(load, standbys) == pytest.approx(direct, rel=1e-9)
    tail = float(stats.poisson.sf(standbys, load))
    assert waiting_share(load, standbys) == pytest.approx(tail, rel=1e-6, abs=1e-300)


@given(st.floats(0.0, 30.0), st.integers(1, 5000))
def test_standbys_are_the_fewest_and_the_cheapest(load: float, machines: int) -> None:
    found = standbys_for(load, machines)
    if load == 0:
        assert (found.by_cost, found.by_shortage) == (0, 0)
        return
    assert erlang_loss(load, found.by_shortage) < STANDBY_SHORTAGE
    assert found.by_shortage == 0 or erlang_loss(load, found.by_shortage - 1) >= STANDBY_SHORTAGE
    counts = np.arange(200)
    costs = machines * stats.poisson.sf(counts, load) + counts
    assert machines * waiting_share(load, found.by_cost) + found.by_cost == pytest.approx(
        float(costs.min()), rel=1e-6
    )


def two_tiers(rate: float, survives: float, transfer: float, stall: float) -> TwoTier:
    return TwoTier(
        iteration_s=20.0,
        failure_rate_per_s=rate,
        memory_survival_probability=survives,
        downtime_s=300.0,
        memory_checkpoint_s=20.0,
        memory_retrieval_s=3.0,
        storage_stall_s=stall,
        storage_checkpoint_s=transfer,
        storage_retrieval_s=500.0,
    )


@given(
    st.floats(1e-9, 1e-3),
    st.floats(0.0, 1.0),
    st.floats(0.0, 20_000.0),
    st.sampled_from([0.0, 1.0, 80.0]),
)
def test_the_storage_interval_is_long_and_not_noticeably_worse(
    rate: float, survives: float, transfer: float, stall: float
) -> None:
    config = two_tiers(rate, survives, transfer, stall)
    found = storage_interval(config)
    shortest = max(config.min_storage_interval_s, 2 * transfer, SHORTEST_STORAGE_S)
    longest = max(LONGEST_STORAGE_S, shortest)
    assert shortest <= found.chosen_s <= longest
    allowed = [shortest + (longest - shortest) * part / 200 for part in range(201)]
    ratios = {interval: two_tier_effective_ratio(config, interval) for interval in allowed}
    best = max(ratios.values())
    assert two_tier_effective_ratio(config, found.chosen_s) >= best - UNNOTICED - 1e-12
    # None that is longer by more than the rounding to minutes is as good.
    longer = [ratios[interval] for interval in allowed if interval > found.chosen_s + 62]
    assert all(ratio < best - UNNOTICED + 1e-7 for ratio in longer)


def test_what_never_needs_storage_keeps_the_papers_interval() -> None:
    found = storage_interval(two_tiers(1e-5, 1.0, 480.0, 0.0))
    assert found.chosen_s == 3 * 3600
    assert found.optimal_s == math.inf
