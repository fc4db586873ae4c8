"""How often to checkpoint to memory when the traffic does not fit the network's idle time.

The paper sends what fits nowhere to the last idle span, which delays the update, and says that the
frequency may then be lowered to amortise the delay (sec. 5.3); it gives no rule. This is one: the
period that wastes the least time. With a checkpoint every k iterations of T, each delayed by d,
failures at a small rate lambda, and Eq. 1 (sec. 2.1) for what a failure wastes,

    W(k) = d / (k T + d) + lambda [t_ckpt + (k T + d)/2 + t_rtvl]

is the share of the time that is wasted, to first order in lambda. Two ways to send, with traffic X
and idle time I an iteration:

- From the state itself. Invariant 2 has the transfer end before the next update, so one iteration
  has to carry all of it: d = max(0, X - I) whatever k is, and t_ckpt = T + d. With L = k T + d,
  W = d/L + lambda L/2 + a constant, which is least at L = sqrt(2 d/lambda): Young's rule.
- From a snapshot (the sender's own copy in CPU memory), which training does not write. The traffic
  may then spread over all k iterations: d = max(0, X - k I). Up to the first k* with d = 0 the
  checkpoint is complete k T + d after its iteration, and
  W = (X - k I)/L + 3/2 lambda L + a constant with L = X + k (T - I) is convex in k, least at
  L = sqrt(T X / (3/2 lambda (T - I))). From k* on W only grows.

Both branches being convex, the best whole k is next to the continuous optimum, or it is k*.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LONGEST_INTERVAL_S = 3 * 3600.0
"""The paper's storage interval (sec. 7.1): rarer memory checkpoints would save nothing."""


@dataclass(frozen=True, slots=True)
class CheckpointFrequency:
    """A period of memory checkpoints and what it costs.

    Attributes:
        every: iterations from one checkpoint to the next.
        delay_s: by how much each checkpoint delays training.
        completion_s: t_ckpt, from the end of an iteration until its checkpoint is complete.
        wasted_per_failure_s: Eq. 1 at this period.
        wasted_share: W, of all time; above 1 where failures leave no time for work.
    """

    every: int
    delay_s: float
    completion_s: float
    wasted_per_failure_s: float
    wasted_share: float


def checkpoint_frequency(
    every: int,
    *,
    iteration_s: float,
    traffic_s: float,
    idle_s: float,
    failure_rate_per_s: float,
    retrieval_s: float = 0.0,
    from_snapshot: bool = False,
) -> CheckpointFrequency:
    """Return what a checkpoint every `every` iterations costs; W(k) of this module's head.

    Args:
        every: k, 1 or more.
        iteration_s: T, without checkpoints, > 0.
        traffic_s: X, time that the network needs for the remote replicas, >= 0.
        idle_s: I, idle time of an iteration that checkpoints may use, 0 to T.
        failure_rate_per_s: lambda, of the whole job, >= 0.
        retrieval_s: t_rtvl, >= 0.
        from_snapshot: whether the traffic may spread over iterations.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check(iteration_s, traffic_s, idle_s, failure_rate_per_s, retrieval_s)
    if every < 1:
        raise ValueError(f"every is {every}: give a period of 1 iteration or more")
    usable_s = every * idle_s if from_snapshot else idle_s
    delay_s = max(0.0, traffic_s - usable_s)
    carrying = 1
    if from_snapshot and idle_s > 0.0:
        carrying = min(every, max(1, _iterations_to_carry(traffic_s, idle_s)))
    completion_s = carrying * iteration_s + delay_s
    period_s = every * iteration_s + delay_s
    wasted_s = completion_s + period_s / 2.0 + retrieval_s
    share = delay_s / period_s + failure_rate_per_s * wasted_s
    return CheckpointFrequency(every, delay_s, completion_s, wasted_s, share)


def least_wasteful_frequency(
    *,
    iteration_s: float,
    traffic_s: float,
    idle_s: float,
    failure_rate_per_s: float,
    retrieval_s: float = 0.0,
    from_snapshot: bool = False,
    longest_interval_s: float = LONGEST_INTERVAL_S,
) -> CheckpointFrequency:
    """Return the period that wastes the least time; of equals the shortest.

    Every iteration where the traffic fits (the paper's optimum, sec. 2.1), less often where each
    checkpoint delays training.

    Args:
        iteration_s: as `checkpoint_frequency`, and so are the others.
        traffic_s: see there.
        idle_s: see there.
        failure_rate_per_s: see there.
        retrieval_s: see there.
        from_snapshot: see there.
        longest_interval_s: the longest period to consider, > 0; without failures it is the answer
            whenever the traffic never fits. One iteration is allowed even if it is longer.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check(iteration_s, traffic_s, idle_s, failure_rate_per_s, retrieval_s)
    if not 0.0 < longest_interval_s < math.inf:
        raise ValueError(f"longest_interval_s is {longest_interval_s}: give a time above 0")
    longest = max(1, int(longest_interval_s // iteration_s))
    candidates = {1}
    if from_snapshot and idle_s > 0.0:
        fits = max(1, _iterations_to_carry(traffic_s, idle_s))
        candidates.add(min(longest, fits))
        best = _best_spread(iteration_s, traffic_s, idle_s, failure_rate_per_s)
        candidates |= _around(best, min(longest, max(1, fits - 1)))
    elif traffic_s > idle_s:
        best = math.inf
        if failure_rate_per_s > 0.0:
            delay_s = traffic_s - idle_s
            best = (math.sqrt(2.0 * delay_s / failure_rate_per_s) - delay_s) / iteration_s
        candidates |= _around(best, longest)
    found = (
        checkpoint_frequency(
            every,
            iteration_s=iteration_s,
            traffic_s=traffic_s,
            idle_s=idle_s,
            failure_rate_per_s=failure_rate_per_s,
            retrieval_s=retrieval_s,
            from_snapshot=from_snapshot,
        )
        for every in sorted(candidates)
    )
    return min(found, key=lambda frequency: (frequency.wasted_share, frequency.every))


def _best_spread(iteration_s: float, traffic_s: float, idle_s: float, rate_per_s: float) -> float:
    """Return the continuous optimum of the branch in which the spread traffic still delays."""
    gained_s = iteration_s - idle_s
    if gained_s == 0.0 or rate_per_s == 0.0:
        return math.inf
    length_s = math.sqrt(iteration_s * traffic_s / (1.5 * rate_per_s * gained_s))
    return (length_s - traffic_s) / gained_s


def _around(best: float, most: int) -> set[int]:
    """Return the whole numbers next to `best` within 1 .. most."""
    within = min(max(best, 1.0), float(most))
    return {math.floor(within), math.ceil(within)}


def _iterations_to_carry(traffic_s: float, idle_s: float) -> int:
    """Return the fewest iterations whose idle time holds the traffic, rounding aside."""
    ratio = traffic_s / idle_s
    if ratio > 1e15:  # more iterations than any run has
        return 10**15
    return math.ceil(ratio * (1.0 - 1e-12))


def _check(
    iteration_s: float, traffic_s: float, idle_s: float, rate_per_s: float, retrieval_s: float
) -> None:
    values = {
        "iteration_s": iteration_s,
        "traffic_s": traffic_s,
        "idle_s": idle_s,
        "failure_rate_per_s": rate_per_s,
        "retrieval_s": retrieval_s,
    }
    for name, value in values.items():
        if not 0.0 <= value < math.inf:
            raise ValueError(f"{name} is {value}: give a finite number of 0 or more")
    if iteration_s == 0.0:
        raise ValueError("iteration_s is 0: give the time of an iteration, above 0 s")
    if idle_s > iteration_s:
        raise ValueError(
            f"idle_s is {idle_s}: an iteration of {iteration_s} s cannot be idle for longer"
        )
