"""Fleets of machines with repair against renewal theory: MTBF / (MTBF + MTTR), k out of n."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from castor_sim.strategy_costs import StrategyCosts
from castor_sim.strikes import Strikes
from castor_sim.tally import Operations
from castor_traces.failure_stream import FailureProcess
from castor_traces.generators import PoissonFailures, RenewalFailures, WeibullGaps
from castor_traces.marks import (
    ExponentialRepair,
    FixedRepair,
    LognormalRepair,
    Marks,
    RepairTime,
)

HOUR_S = 3600.0
HOUR_NS = 3600 * 10**9
MTBF_S = 90 * HOUR_S
MTTR_S = 10 * HOUR_S
UNAVAILABILITY = MTTR_S / (MTBF_S + MTTR_S)
BARE = StrategyCosts(iteration_ns=10**9)
"""Nothing but iterations: every instant without enough machines is replacement wait."""

REPAIRS: list[RepairTime] = [
    ExponentialRepair(MTTR_S),
    LognormalRepair(4 * HOUR_S, MTTR_S),
    FixedRepair(MTTR_S),
]


def named(value: object) -> str:
    return type(value).__name__


def fleets(process: FailureProcess, size: int, horizon_ns: int) -> list[Strikes]:
    """Cut the failures of many machines into those of independent fleets of `size`.

    Machines of a renewal process are independent, and one process of many machines is generated
    far faster than many of a few.
    """
    blocks = list(process.blocks(1, horizon_ns))
    time_ns = np.concatenate([block.time_ns for block in blocks])
    machine = np.concatenate([block.machine for block in blocks])
    restore_ns = np.concatenate([block.duration_ns for block in blocks])
    fleet = machine // size
    in_fleets = np.argsort(fleet, kind="stable")
    count = -(-process.machines // size)
    begins = np.searchsorted(fleet[in_fleets], np.arange(1, count))
    parts = np.split(in_fleets, begins)
    fleets = []
    for first, mine in zip(range(0, process.machines, size), parts, strict=True):
        hardware = np.ones(len(mine), np.int8)
        fleets.append(Strikes(time_ns[mine], machine[mine] - first, hardware, restore_ns[mine]))
    return fleets


def waiting_shares(jump, positions, fleet, process, horizon_ns) -> list[float]:
    replicas = [[position] for position in range(positions)]
    operations = Operations(positions, fleet=fleet)
    shares = []
    for strikes in fleets(process, fleet, horizon_ns):
        tally = jump(BARE, operations, replicas, [strikes], horizon_ns=horizon_ns)
        assert tally.useful_ns + tally.lost_progress_ns + tally.replacement_wait_ns == horizon_ns
        shares.append(tally.replacement_wait_ns / tally.wall_ns)
    return shares


@pytest.mark.parametrize("repair", REPAIRS, ids=named)
@pytest.mark.parametrize("gaps", ["exponential", "weibull", "poisson"])
def test_one_machine_is_up_mtbf_of_mtbf_plus_mttr(gaps, repair, jump, assert_mean) -> None:
    # An alternating renewal process: availability hangs on the two means only. "poisson" leaves
    # out the failures of a machine in its repair, which without memory comes to the same.
    cycles, replications = 500, 300
    marks = Marks(hardware_repair=repair)
    process: FailureProcess
    if gaps == "poisson":
        process = PoissonFailures(replications, 1 / MTBF_S, marks=marks, while_down="none")
    else:
        distribution = WeibullGaps(1.0 if gaps == "exponential" else 0.7, MTBF_S)
        process = RenewalFailures(replications, distribution, marks=marks, while_down="none")
    shares = waiting_shares(jump, 1, 1, process, cycles * 100 * HOUR_NS)
    # The run starts with a new machine and ends in the middle of a cycle: at most about one
    # cycle of `cycles` counts wrong, and for most of these distributions far less.
    # 150,000 cycles whose times vary by up to 2.7 times their mean: an error of 0.7 % at most.
    assert_mean(shares, UNAVAILABILITY, precision=0.008, bias=UNAVAILABILITY / cycles)


@pytest.mark.long
@pytest.mark.parametrize("repair", REPAIRS, ids=named)
@pytest.mark.parametrize("spares", [0, 1, 2, 3])
def test_a_job_waits_while_fewer_than_n_of_its_fleet_are_up(
    spares, repair, jump, assert_mean
) -> None:
    """P(wait) = P(Binomial(N + S, availability) < N): spares fail as machines at work do."""
    positions, cycles, replications = 6, 500, 120
    fleet = positions + spares
    marks = Marks(hardware_repair=repair)
    process = RenewalFailures(
        fleet * replications, WeibullGaps(1.0, MTBF_S), marks=marks, while_down="none"
    )
    shares = waiting_shares(jump, positions, fleet, process, cycles * 100 * HOUR_NS)
    expected = sum(
        comb(fleet, down) * UNAVAILABILITY**down * (1 - UNAVAILABILITY) ** (fleet - down)
        for down in range(spares + 1, fleet + 1)
    )
    # Waits with 3 spares are rare (0.8 % of the time), but 120 x 500 cycles of nine machines hold
    # some 20,000 of them.
    assert_mean(shares, expected, precision=0.02, bias=expected / cycles)


def test_positions_are_filled_first_in_first_out(jump, one_block) -> None:
    # Three machines for two positions; hours: 0 fails at 1 for 10, 1 at 2 for 3, 2 at 3 for 1.
    rows = [
        (1 * HOUR_NS, 0, 1, 10 * HOUR_NS),  # the spare 2 takes position 0 at once
        (2 * HOUR_NS, 1, 1, 3 * HOUR_NS),  # no spare: position 1 waits
        (3 * HOUR_NS, 2, 1, 1 * HOUR_NS),  # position 0 waits as well, behind position 1
        # At 4 machine 2 is back and takes position 1, at 5 machine 1 takes position 0.
        # At 11 machine 0 is back and stands by.
    ]
    tally = jump(BARE, Operations(2, fleet=3), [[0], [1]], one_block(rows), horizon_ns=20 * HOUR_NS)
    assert tally.replacement_wait_ns == 3 * HOUR_NS  # from 2 to 5
    assert tally.standby_empty == 2
    assert tally.hardware_failures == 3
