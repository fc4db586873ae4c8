"""Where recoveries load from against the exact survival probabilities of the placement."""

from __future__ import annotations

import random
from math import sqrt

import numpy as np
import pytest

from castor_policy.placement import place
from castor_policy.survival import recovery_probability
from castor_sim.strategy_costs import StrategyCosts
from castor_sim.strikes import Strikes
from castor_sim.tally import Operations

ITERATION_NS = 100
PROFILE = StrategyCosts(
    iteration_ns=ITERATION_NS,
    memory_every=1,
    memory_transfer_ns=80,
    storage_every=10,
    storage_transfer_ns=700,
    serialise_ns=30,
    retrieve_own_ns=1,
    retrieve_peer_ns=5,
    retrieve_storage_ns=200,
    replicate_ns=40,
    warm_up_ns=50,
)
APART_NS = 100 * ITERATION_NS
"""Batches are so far apart that everything is whole again, and stored, long before the next."""

BATCHES = 20_000


@pytest.fixture(scope="module")
def batches():
    def make(machines: int, failures: int, seed: int) -> Strikes:
        """k distinct machines at each of many instants, none of them within a fixed phase."""
        rng = random.Random(seed)
        hit = [rng.sample(range(machines), failures) for _ in range(BATCHES)]
        times = [(1 + n) * APART_NS + rng.randrange(50 * ITERATION_NS) for n in range(BATCHES)]
        rows = BATCHES * failures
        return Strikes(
            np.repeat(np.array(times, np.int64), failures),
            np.array(hit, np.int32).reshape(-1),
            np.ones(rows, np.int8),
            np.full(rows, 60, np.int64),
        )

    return make


@pytest.mark.parametrize("failures", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("strategy", "machines", "replicas"),
    [("group", 16, 2), ("ring", 16, 2), ("mixed", 17, 2), ("ring", 12, 3), ("mixed", 14, 3)],
)
def test_storage_is_needed_as_often_as_survival_says(
    strategy, machines, replicas, failures, batches, jump
) -> None:
    placement = place(strategy, machines, replicas)
    assert placement.kind == strategy
    tally = jump(
        PROFILE,
        Operations(machines),
        placement.replicas,
        [batches(machines, failures, seed=machines * 10 + failures)],
        horizon_ns=(BATCHES + 2) * APART_NS,
    )
    assert tally.recoveries == BATCHES
    assert tally.recovered_scratch == tally.recovered_pending == tally.recovered_own_memory == 0
    assert tally.recovered_storage % failures == 0
    lost = tally.recovered_storage // failures
    probability = float(1 - recovery_probability(placement, failures))
    if failures < replicas:
        assert probability == lost == 0
        return
    # Batches are independent: a binomial count; 4 standard deviations and the half for its steps.
    deviation = sqrt(BATCHES * probability * (1 - probability))
    assert abs(lost - BATCHES * probability) <= 4 * deviation + 0.5
    assert deviation < 0.2 * BATCHES * probability, "too few losses to tell anything"


@pytest.mark.parametrize("strategy", ["group", "ring"])
def test_each_single_batch_agrees_with_the_placement(strategy, batches, jump) -> None:
    """Not only the share: every batch is recovered from memory exactly if it is survivable."""
    machines, failures = 10, 4
    placement = place(strategy, machines, 2)
    strikes = batches(machines, failures, seed=3)
    sources: list[int] = []
    jump(
        PROFILE,
        Operations(machines),
        placement.replicas,
        [strikes],
        horizon_ns=(BATCHES + 2) * APART_NS,
        sources=sources,
    )
    hit = strikes.machine.reshape(-1, failures).tolist()
    peer, storage = 1, 2
    expected = [peer if placement.survives(failed) else storage for failed in hit]
    assert np.array(sources).reshape(-1, failures).T.tolist() == [expected] * failures
