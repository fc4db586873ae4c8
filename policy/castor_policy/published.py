"""Formulas behind published figures of Gemini, as published, to set beside our own numbers.

They are the paper's lines, not this project's model: first order in the failure rate, and without
bounds where the paper draws none. `frequency` and the simulator hold the models to use.
"""

from __future__ import annotations

_DAY_MIN = 1440.0
_STORAGE_BPS = 20e9
_NIC_EFFICIENCY = 0.85


def gemini_effective_ratio(failures_per_day: float) -> float:
    """Return Gemini's line of Fig. 15: 1 - 9 F / 1440 min.

    A failure costs 9 minutes: detection 15 s, serialisation 162 s, warm-up 253 s, and 1.5
    iterations of rollback. All failures are of software, so no machine is replaced.

    Args:
        failures_per_day: F >= 0. The line is not cut off at 0, which it reaches at F = 160.

    Raises:
        ValueError: the rate is negative or no number.
    """
    return 1.0 - 9.0 * _rate(failures_per_day) / _DAY_MIN


def strawman_effective_ratio(failures_per_day: float) -> float:
    """Return Strawman's line of Fig. 15: max(0, 1 - 112 F / 1440 min).

    A failure costs 112 minutes: twice the 8 minutes of transfer to and from storage, half of the
    3 hours between checkpoints, and 6 minutes to restart. Saving itself is taken as free.

    Args:
        failures_per_day: F >= 0.

    Raises:
        ValueError: the rate is negative or no number.
    """
    return max(0.0, 1.0 - 112.0 * _rate(failures_per_day) / _DAY_MIN)


def highfreq_effective_ratio(failures_per_day: float) -> float:
    """Return HighFreq's line of Fig. 15: 480/560 - 26 F / 1440 min.

    Each 480 s of training is followed by 80 s of blocking serialisation; a failure costs
    2.5 times the 8 minutes of transfer, and 6 minutes to restart.

    Args:
        failures_per_day: F >= 0. The line is not cut off at 0, which it reaches near F = 47.

    Raises:
        ValueError: the rate is negative or no number.
    """
    return 480.0 / 560.0 - 26.0 * _rate(failures_per_day) / _DAY_MIN


def opt_failures_per_day(instances: int) -> float:
    """Return Fig. 15b's failures a day: 1.5 % of the instances, the rate of OPT-175B (sec. 7.3).

    Raises:
        ValueError: the number of instances is negative.
    """
    if instances < 0:
        raise ValueError(f"instances is {instances}: give 0 or more")
    return 0.015 * instances


def checkpoint_time_reduction(instances: int, nic_bps: float, replicas: int = 2) -> float:
    """Return Fig. 11's factor: n * 0.85 * NIC / 20 Gbps / (m - 1).

    How many times faster a checkpoint reaches the other machines' memory than the shared storage
    of 20 Gbps in total. A formula, not a measurement: each of n instances sends m - 1 copies of
    its shard at 85 % of its network rate.

    Args:
        instances: n >= 1.
        nic_bps: network bandwidth of an instance in bits per second, > 0.
        replicas: m >= 2, the instance's own included.

    Raises:
        ValueError: an argument is out of its range.
    """
    if instances < 1:
        raise ValueError(f"instances is {instances}: give 1 or more")
    if not nic_bps > 0:
        raise ValueError(f"nic_bps is {nic_bps}: give more than 0 bits per second")
    if replicas < 2:
        raise ValueError(f"replicas is {replicas}: give 2 or more, or nothing is sent")
    return instances * _NIC_EFFICIENCY * nic_bps / _STORAGE_BPS / (replicas - 1)


def _rate(failures_per_day: float) -> float:
    if not failures_per_day >= 0:
        raise ValueError(f"failures_per_day is {failures_per_day}: give a rate of 0 or more")
    return failures_per_day
