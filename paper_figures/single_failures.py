"""Failures one at a time, long after each other: what the paper assumes in Fig. 10 and 14."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from castor_policy.placement import Placement
from castor_sim import jump_engine
from castor_sim.setup import Setup
from castor_sim.strikes import Strikes
from castor_sim.tally import Tally
from castor_traces.random_draws import Draws

DAY_NS = 86_400 * 10**9


def one_a_day(
    setup: Setup, seed: int, days: int, *, sets: Sequence[Sequence[int]], hardware: bool
) -> Strikes:
    """Return one failure a day, each in the first half of its day, none on the first day.

    A recovery and any checkpoint period of the paper fit into the other half, so that every
    failure meets a job that has checkpointed since the last one, at a uniform time of its period.

    Args:
        setup: its replacement times are drawn from.
        seed: of the times, the machines and the replacements.
        days: how many failures.
        sets: machines that fail together; one set is drawn for each failure. All of one size.
        hardware: whether the machines are lost.
    """
    size = len(sets[0])
    times = np.arange(1, days + 1, dtype=np.int64) * DAY_NS
    times += Draws(seed, "single failures", "time").uniform_ns(days, 0, DAY_NS // 2)
    drawn = Draws(seed, "single failures", "machines").integers(days, len(sets))
    machines: NDArray[np.int32] = np.asarray(sets, dtype=np.int32)[drawn].reshape(-1)
    low_ns, high_ns = setup.experiment.replacement.provision
    restore = Draws(seed, "single failures", "replacement")
    return Strikes(
        np.repeat(times, size),
        machines,
        np.full(days * size, int(hardware), np.int8),
        restore.uniform_ns(days * size, low_ns, high_ns + 1),
    )


def machine_sets(placement: Placement, size: int, *, recoverable: bool) -> list[tuple[int, ...]]:
    """Return all sets of `size` machines, or those whose loss leaves a replica of every shard."""
    sets = combinations(range(placement.machines), size)
    return [chosen for chosen in sets if not recoverable or placement.survives(set(chosen))]


def run_episodes(setup: Setup, strategy: str, strikes: Strikes) -> Tally:
    """Run one strategy through `strikes`, to a day after the last."""
    return jump_engine.run(
        setup.costs[strategy],
        setup.operations,
        jump_engine.replica_array(setup.placements[strategy].replicas),
        [strikes],
        horizon_ns=int(strikes.time_ns[-1]) + DAY_NS,
    )
