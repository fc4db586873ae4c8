"""Standby machines against queueing theory: Erlang's loss formula and the Poisson tail.

A standby taken is back in the pool when its replacement arrives, so the pool is a queue with S
servers, the service time being detection plus provision. Where a failure that finds no standby
waits for a machine of its own ("dedicated"), it does not enter the pool: M/G/S/S. Where it takes
whichever machine comes first, everyone enters: M/G/infinity, with the pool dry at S and more.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import exp, factorial

import numpy as np
import pytest

from castor_sim.strategy_costs import StrategyCosts
from castor_sim.strikes import Strikes
from castor_sim.tally import Operations
from castor_traces.generators import PoissonFailures
from castor_traces.marks import ExponentialRepair, FixedRepair, Marks, RepairTime, UniformRepair

NS_PER_S = 10**9
BARE = StrategyCosts(iteration_ns=NS_PER_S)
MACHINES = 8
MEAN_S = 300.0

PROVISIONS: list[RepairTime] = [
    FixedRepair(MEAN_S),
    UniformRepair(0.0, 2 * MEAN_S),
    ExponentialRepair(MEAN_S),
]


def named(value: object) -> str:
    return type(value).__name__


def erlang_b(servers: int, load: float) -> float:
    """Share of arrivals that find all servers busy, load in Erlang."""
    terms = [load**n / factorial(n) for n in range(servers + 1)]
    return terms[-1] / sum(terms)


def poisson_tail(least: int, load: float) -> float:
    """P(Poisson(load) >= least)."""
    return 1 - sum(exp(-load) * load**n / factorial(n) for n in range(least))


def dry_shares(jump, strikes_of, operations, replications, horizon_ns) -> list[float]:
    replicas = [[position] for position in range(MACHINES)]
    shares = []
    for seed in range(replications):
        tally = jump(BARE, operations, replicas, strikes_of(seed), horizon_ns=horizon_ns)
        shares.append(tally.standby_empty / tally.hardware_failures)
    return shares


def failures_of(load: float, provision: RepairTime) -> PoissonFailures:
    rate_per_s = load / MEAN_S / MACHINES
    return PoissonFailures(MACHINES, rate_per_s, marks=Marks(hardware_repair=provision))


def horizon_for(arrivals: int, load: float) -> int:
    return round(arrivals * MEAN_S / load) * NS_PER_S


@pytest.mark.parametrize("provision", PROVISIONS, ids=named)
@pytest.mark.parametrize(("standbys", "load"), [(0, 1.0), (1, 0.5), (2, 0.5), (2, 2.0), (5, 4.0)])
def test_a_dedicated_pool_runs_dry_as_erlang_says(
    standbys, load, provision, jump, from_process, assert_mean
) -> None:
    """Insensitive to the distribution of the provision time: only its mean counts."""
    arrivals, replications = 10_000, 40
    horizon_ns = horizon_for(arrivals, load)
    shares = dry_shares(
        jump,
        lambda seed: from_process(failures_of(load, provision), seed, horizon_ns),
        Operations(MACHINES, standbys=standbys, dedicated=1),
        replications,
        horizon_ns,
    )
    expected = erlang_b(standbys, load)
    if standbys == 0:
        assert shares == [1.0] * replications
        return
    # The pool starts full: of 10,000 arrivals the first few (about `load`) find it too full.
    # The rarest of these losses is 7.7 %: 30,000 of them in all, in clusters of a few.
    assert_mean(shares, expected, precision=0.015, bias=expected * (load + 1) / arrivals)


@pytest.mark.parametrize("provision", PROVISIONS, ids=named)
@pytest.mark.parametrize(("standbys", "load"), [(0, 0.5), (1, 0.5), (2, 2.0), (5, 4.0)])
def test_a_pool_for_whoever_comes_first_is_dry_as_often_as_poisson_says(
    standbys, load, provision, jump, from_process, assert_mean
) -> None:
    """Requests outstanding are Poisson; arrivals see time averages, and the job waits above S."""
    arrivals, replications = 10_000, 40
    horizon_ns = horizon_for(arrivals, load)
    operations = Operations(MACHINES, standbys=standbys)
    replicas = [[position] for position in range(MACHINES)]
    dry, waiting = [], []
    for seed in range(replications):
        strikes = from_process(failures_of(load, provision), seed, horizon_ns)
        tally = jump(BARE, operations, replicas, strikes, horizon_ns=horizon_ns)
        dry.append(tally.standby_empty / tally.hardware_failures)
        waiting.append(tally.replacement_wait_ns / tally.wall_ns)
    expected = poisson_tail(standbys, load)
    if standbys:
        assert_mean(dry, expected, precision=0.015, bias=expected * (load + 1) / arrivals)
    else:
        assert dry == [1.0] * replications
    expected = poisson_tail(standbys + 1, load)
    assert_mean(waiting, expected, precision=0.02, bias=expected * (load + 1) / arrivals)


def test_detection_keeps_a_standby_busy_as_well(jump, from_process, assert_mean) -> None:
    # Heartbeat and poll every 100 s, one miss: a failure at uniform u of a period is known when
    # the period after the last heartbeat ends, 100 - u later, 50 s on average.
    load, arrivals, replications = 2.0, 10_000, 40
    provision = FixedRepair(MEAN_S - 50.0)
    horizon_ns = horizon_for(arrivals, load)
    detection = {"heartbeat_ns": 100 * NS_PER_S, "poll_ns": 100 * NS_PER_S, "misses": 1}
    shares = dry_shares(
        jump,
        lambda seed: from_process(failures_of(load, provision), seed, horizon_ns),
        Operations(MACHINES, standbys=2, dedicated=1, **detection),
        replications,
        horizon_ns,
    )
    expected = erlang_b(2, load)
    assert_mean(shares, expected, precision=0.01, bias=expected * (load + 1) / arrivals)
    # Without the detection's 50 s of 300 the formula is off by much more than the test's error.
    assert abs(erlang_b(2, load * 250 / 300) / expected - 1) > 5 * 0.01


def test_without_standbys_both_kinds_of_request_are_one(jump, one_block) -> None:
    """Whoever comes first or one's own: with nobody standing by, the job waits for the last."""
    rng = np.random.default_rng(5)
    rows = [
        (int(time), int(machine), 1, int(restore))
        for time, machine, restore in zip(
            np.sort(rng.integers(0, 10**6, 3000)),
            rng.integers(0, MACHINES, 3000),
            rng.integers(0, 2000, 3000),
            strict=True,
        )
    ]
    strikes: list[Strikes] = one_block(rows)
    replicas = [[position] for position in range(MACHINES)]

    def outcomes() -> Iterator[object]:
        for dedicated in (0, 1):
            operations = Operations(MACHINES, dedicated=dedicated)
            yield jump(BARE._replace(iteration_ns=7), operations, replicas, strikes,
                       horizon_ns=2 * 10**6)  # fmt: skip

    first, own = outcomes()
    assert first == own
