"""How often to checkpoint: wasted time, and the interval that minimises the run time.

Two views of the same choice. Gemini's (sec. 2.1) counts what one failure wastes: Eq. 1, under the
constraint Eq. 2. The older one (Young 1974; Daly, "A higher order estimate of the optimum
checkpoint interval for restart dumps", FGCS 22, 2006) minimises the expected time of a whole run
with exponential failures of mean M and blocking checkpoints of delta seconds:

    Young          tau = sqrt(2 delta M)
    Daly           tau = sqrt(2 delta M) [1 + sqrt(delta/2M)/3 + (delta/2M)/9] - delta
    exact optimum  tau = M [1 + W0(-exp(-1 - delta/M))]

In all three, tau is the *compute time between checkpoints*: a period lasts tau + delta.
`frequency_two_tier` carries this over to memory checkpoints with a storage tier behind them.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TypeVar

Number = TypeVar("Number", int, Fraction)
Time = TypeVar("Time", int, float)

_NEAR_BRANCH = 0.01
# W0 = -1 + p - p^2/3 + ... with p = sqrt(2 (1 + e z)): Corless et al., "On the Lambert W
# function" (1996), eq. 4.22. From the power 1 on; below _NEAR_BRANCH the rest is under 1e-16.
_BRANCH_SERIES = (
    1.0,
    -1.0 / 3.0,
    11.0 / 72.0,
    -43.0 / 540.0,
    769.0 / 17280.0,
    -221.0 / 8505.0,
    680863.0 / 43545600.0,
    -1963.0 / 204120.0,
)
_HALLEY_STEPS_MAX = 64  # it converges in a handful; the bound is there to be sure of an end


def wasted_time_s(checkpoint_s: float, frequency_hz: float, retrieval_s: float) -> float:
    """Return Eq. 1, the average time that a failure wastes: t_ckpt + 1/(2f) + t_rtvl.

    Repair and replacement of machines are not part of it (the paper's footnote 1). Whether the
    frequency is possible at all is Eq. 2: see `min_interval_s`.

    Args:
        checkpoint_s: time until a checkpoint is complete, >= 0.
        frequency_hz: checkpoints a second, > 0.
        retrieval_s: time to fetch the latest complete checkpoint, >= 0.

    Raises:
        ValueError: an argument is out of its range.
    """
    _at_least_zero(checkpoint_s=checkpoint_s, retrieval_s=retrieval_s)
    _above_zero(frequency_hz=frequency_hz)
    return checkpoint_s + 0.5 / frequency_hz + retrieval_s


def min_interval_s(checkpoint_s: float, iteration_s: float) -> float:
    """Return the shortest interval that Eq. 2 allows: 1/f >= max(t_ckpt, T_iter).

    A checkpoint cannot start before the one before it ended, and the state changes once an
    iteration.

    Args:
        checkpoint_s: time until a checkpoint is complete, >= 0.
        iteration_s: time of an iteration, > 0.

    Raises:
        ValueError: an argument is out of its range.
    """
    _at_least_zero(checkpoint_s=checkpoint_s)
    _above_zero(iteration_s=iteration_s)
    return max(checkpoint_s, iteration_s)


def shortest_period(checkpoint: Number, iteration: Number) -> int:
    """Return Eq. 2 in whole iterations: ceil(t_ckpt / T_iter), at least 1.

    Args:
        checkpoint: time until a checkpoint is complete, >= 0; in any unit, but an exact number.
        iteration: time of an iteration in the same unit, > 0.
    """
    return max(1, -(-checkpoint // iteration))


def nearest_period(interval_ns: int, checkpoint_ns: int, iteration_ns: int) -> int:
    """Return the whole number of iterations nearest to an interval, as far as Eq. 2 allows.

    Args:
        interval_ns: wanted between two checkpoints.
        checkpoint_ns: time until a checkpoint is complete, >= 0.
        iteration_ns: time of an iteration, > 0.
    """
    nearest = (2 * interval_ns + iteration_ns) // (2 * iteration_ns)
    return max(nearest, shortest_period(checkpoint_ns, iteration_ns))


def memory_stall(traffic: Time, idle: Time, every: int) -> Time:
    """Return how long training stands still for each checkpoint in memory; 0: it is free.

    It is where its traffic fits into the time in which the network is idle anyway, until the next
    one begins.

    Args:
        traffic: time to send the remote copies, >= 0.
        idle: in which the network is idle, of each iteration, in the same unit, >= 0.
        every: iterations between two checkpoints.
    """
    return max(0, traffic - idle * every)


def highfreq_interval_iterations(checkpoint_s: float, iteration_s: float) -> int:
    """Return HighFreq's interval (sec. 7.1): ceil(t_ckpt / T_iter) iterations, at least 1.

    The quotient is that of the numbers as written in decimal: 1.1 s of checkpoint in iterations of
    0.1 s is 11, although the quotient of the binary floats is a little larger.

    Args:
        checkpoint_s: time until a checkpoint is complete, >= 0.
        iteration_s: time of an iteration, > 0.

    Raises:
        ValueError: an argument is out of its range.
    """
    _at_least_zero(checkpoint_s=checkpoint_s)
    _above_zero(iteration_s=iteration_s)
    return shortest_period(Fraction(repr(float(checkpoint_s))), Fraction(repr(float(iteration_s))))


def young_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """Return Young's interval sqrt(2 delta M), compute time between checkpoints.

    First order: good while the checkpoint is much shorter than the mean time between failures.

    Args:
        checkpoint_s: delta, blocking time of a checkpoint, >= 0.
        mtbf_s: M, mean time between failures of the whole job, > 0.

    Raises:
        ValueError: an argument is out of its range.
    """
    _at_least_zero(checkpoint_s=checkpoint_s)
    _above_zero(mtbf_s=mtbf_s)
    product = 2.0 * checkpoint_s * mtbf_s
    if 0.0 < product < math.inf:
        return math.sqrt(product)
    return math.sqrt(2.0) * math.sqrt(checkpoint_s) * math.sqrt(mtbf_s)


def daly_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """Return Daly's higher order interval (2006), compute time between checkpoints.

    sqrt(2 delta M) [1 + sqrt(delta/2M)/3 + (delta/2M)/9] - delta for delta < 2M, otherwise M.

    Args:
        checkpoint_s: delta, blocking time of a checkpoint, >= 0.
        mtbf_s: M, mean time between failures of the whole job, > 0.

    Raises:
        ValueError: an argument is out of its range.
    """
    young_s = young_interval_s(checkpoint_s, mtbf_s)
    half_share = checkpoint_s / mtbf_s / 2.0
    if half_share >= 1.0:
        return mtbf_s
    return young_s * (1.0 + math.sqrt(half_share) / 3.0 + half_share / 9.0) - checkpoint_s


def optimal_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """Return the interval that minimises `expected_run_time_s`: M [1 + W0(-exp(-1 - delta/M))].

    Only (exp((tau + delta)/M) - 1)/tau depends on tau. Its derivative is zero where
    (1 - tau/M) exp(tau/M) = exp(-delta/M); with w = tau/M - 1 that is w e^w = -exp(-1 - delta/M),
    and 0 <= tau <= M picks the branch W0. The restart time does not enter, nor does whether a
    restart can fail.

    Args:
        checkpoint_s: delta, blocking time of a checkpoint, >= 0. At 0 the optimum is 0: all the
            time.
        mtbf_s: M, mean time between failures of the whole job, > 0.

    Returns:
        tau, compute time between checkpoints. It tends to M where delta is much longer than M.

    Raises:
        ValueError: an argument is out of its range.
    """
    _at_least_zero(checkpoint_s=checkpoint_s)
    _above_zero(mtbf_s=mtbf_s)
    share = checkpoint_s / mtbf_s
    # Where delta/M is tiny, -exp(-1 - delta/M) is -1/e to all digits: keep 1 + e z instead.
    distance = math.sqrt(-2.0 * math.expm1(-share))
    if distance < _NEAR_BRANCH:
        if distance == 0.0 or share < 1e-300:  # delta/M is zero, or has lost digits as a float
            return young_interval_s(checkpoint_s, mtbf_s)
        return mtbf_s * _branch_series(distance)
    return mtbf_s * (1.0 + lambert_w0(-math.exp(-1.0 - share)))


def expected_run_time_s(
    work_s: float,
    interval_s: float,
    checkpoint_s: float,
    restart_s: float,
    mtbf_s: float,
    failures_during_restart: bool,
) -> float:
    """Return the expected wall time of a run with exponential failures and blocking checkpoints.

    A segment is tau of work and its checkpoint, L = tau + delta. It must pass without a failure;
    a failure anywhere in it, also in the checkpoint, costs a restart R and starts it again. The
    number of failures before it passes is geometric with mean e^{L/M} - 1, and the time spent in
    attempts has mean M (e^{L/M} - 1).

        restarts never fail:  T = (M + R) (e^{L/M} - 1) Ts/tau
        restarts fail too:    a restart takes M (e^{R/M} - 1) on average in place of R, hence
                              T = M e^{R/M} (e^{L/M} - 1) Ts/tau

    The second is Daly's complete cost function (2006). Both are exact if Ts is a multiple of tau
    and the last segment is saved as well.

    Args:
        work_s: Ts, the run time without failures and checkpoints, >= 0.
        interval_s: tau, compute time between checkpoints, >= 0.
        checkpoint_s: delta, blocking time of a checkpoint, >= 0.
        restart_s: R, from a failure until work goes on, >= 0.
        mtbf_s: M, mean time between failures of the whole job, > 0.
        failures_during_restart: whether a failure can strike a restart, which then starts again.

    Returns:
        Seconds; infinity where they exceed what a float can hold, and where tau = 0 < delta.

    Raises:
        ValueError: an argument is out of its range.
    """
    _at_least_zero(work_s=work_s)
    slowdown = expected_slowdown(
        interval_s,
        checkpoint_s,
        restart_s,
        mtbf_s,
        failures_during_restart=failures_during_restart,
    )
    return work_s * slowdown if work_s else 0.0


def expected_slowdown(
    interval_s: float,
    checkpoint_s: float,
    restart_s: float,
    mtbf_s: float,
    *,
    failures_during_restart: bool = True,
) -> float:
    """Return the expected wall time for each second of work, `expected_run_time_s` over Ts.

    At least 1. Arguments, errors and infinity are those of `expected_run_time_s`.
    """
    _at_least_zero(interval_s=interval_s, checkpoint_s=checkpoint_s, restart_s=restart_s)
    _above_zero(mtbf_s=mtbf_s)
    if interval_s == 0.0 and checkpoint_s > 0.0:
        return math.inf
    period = (interval_s + checkpoint_s) / mtbf_s
    # (e^{L/M} - 1) M/tau as (L/tau) (e^x - 1)/x: no division by a small L/M.
    share = 1.0 + checkpoint_s / interval_s if interval_s else 1.0
    restart = restart_s / mtbf_s
    per_restart = exp_or_inf(restart) if failures_during_restart else 1.0 + restart
    return per_restart * share * expm1_ratio(period)


def lambert_w0(value: float) -> float:
    """Return W0(value), the principal solution w >= -1 of w e^w = value, by Halley's iteration.

    Near the branch point -1/e the result has the accuracy that the argument allows: about half of
    the digits of 1 + W0 (`optimal_interval_s` knows a better argument and keeps them all).

    Raises:
        ValueError: the argument is below -1/e, not a number, or infinite.
    """
    if not math.isfinite(value):
        raise ValueError(f"W0 of {value}: give a finite number")
    above_branch = math.e * value + 1.0
    if above_branch < 0.0:
        if above_branch > -1e-15:  # -1/e itself, rounded
            return -1.0
        raise ValueError(f"W0 of {value}: it is real only from -1/e on")
    distance = math.sqrt(2.0 * above_branch)
    if distance < _NEAR_BRANCH:
        return -1.0 + _branch_series(distance)
    w = _first_guess(value, distance)
    for _ in range(_HALLEY_STEPS_MAX):
        # Newton's residual divided by e^w: then no term overflows for a large argument.
        residual = w - value * math.exp(-w)
        step = residual / (w + 1.0 - (w + 2.0) * residual / (2.0 * w + 2.0))
        w -= step
        if abs(step) <= 1e-16 * (1.0 + abs(w)):
            break
    return w


def exp_or_inf(exponent: float) -> float:
    """Return e^exponent; infinity where a float cannot hold it."""
    try:
        return math.exp(exponent)
    except OverflowError:
        return math.inf


def expm1_ratio(x: float) -> float:
    """Return (e^x - 1)/x for x >= 0, which is 1 at 0; infinity where a float cannot hold it."""
    if x == 0.0:
        return 1.0
    if x == math.inf:
        return math.inf
    try:
        return math.expm1(x) / x
    except OverflowError:
        return math.inf


def _first_guess(value: float, distance: float) -> float:
    if value < 0.0:
        return -1.0 + _branch_series(distance) if distance < 1.0 else value
    if value < math.e:
        return value / (1.0 + value)
    logarithm = math.log(value)
    return logarithm - math.log(logarithm)


def _branch_series(distance: float) -> float:
    """Return 1 + W0(z) from p = sqrt(2 (1 + e z)), for small p."""
    total = 0.0
    for coefficient in reversed(_BRANCH_SERIES):
        total = total * distance + coefficient
    return total * distance


def _at_least_zero(**values: float) -> None:
    for name, value in values.items():
        if not 0.0 <= value < math.inf:
            raise ValueError(f"{name} is {value}: give a finite number of 0 or more")


def _above_zero(**values: float) -> None:
    for name, value in values.items():
        if not 0.0 < value < math.inf:
            raise ValueError(f"{name} is {value}: give a finite number above 0")
