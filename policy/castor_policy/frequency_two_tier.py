"""How often to write to storage when memory checkpoints stand before it (Gemini sec. 2.1, 6, 7.1).

Gemini checkpoints to CPU memory every iteration and to persistent storage every 3 hours; the paper
gives no rule for the 3 hours. This module derives one. It is a renewal argument in the manner of
Daly (2006), for two tiers.

The model. Failures strike at rate lambda, also during a recovery. Each leaves a whole checkpoint in
memory with probability p, independently, and with probability q = 1 - p only the one in storage.

- A recovery from memory takes a = downtime + retrieval + the work redone. Redoing is counted as
  part of it because a failure then starts from the same checkpoint again. The work redone is
  Eq. 1's: t_ckpt + half of the interval between memory checkpoints.
- A recovery from storage takes b = downtime + retrieval. What it redoes is not in b: training
  falls back to the last complete storage checkpoint and goes on from there.
- A failure during a recovery from memory makes it start again with probability p, and from
  storage otherwise; one during a recovery from storage makes that start again.
- After each tau of work, training stalls for s and a storage checkpoint is taken; it is complete
  c later, while training goes on. A period is L = tau + s.

The ratio. Let sigma = exp(-lambda a): a recovery from memory passes undisturbed.

1. A failure ends in storage with probability Q: at once (q), or because its recovery from memory
   is disturbed by a failure that does. Q = q + p (1 - sigma) Q, so Q = q / (q + p sigma). While
   training is up, it falls back to storage at rate theta = lambda Q; other failures only pause it.
2. Count up time between two storage checkpoints becoming complete. When one becomes complete, the
   next does so L of up time later, unless training falls back before; after a fall-back it has to
   pass L + c without another. With S(x) = (e^{theta x} - 1)/theta, the mean up time until x passes
   undisturbed,
       U = (1 - e^{-theta L}) (1/theta + S(L + c)) = e^{theta c} (e^{theta L} - 1)/theta.
   Each such renewal is worth tau of work, net of what was redone.
3. Each second up brings lambda failures. Their mean recovery time E follows from step 1 and from
   the mean time (e^{lambda b} - 1)/lambda of a recovery from storage, and
       1 + lambda E = [1 + q (e^{lambda b} - 1)] / (q + p sigma).
4. Reward over time:

       ratio(tau) = tau theta e^{-theta c} / (e^{theta (tau + s)} - 1) / (1 + lambda E)

With p = 0 this is Daly's complete expected run time with a restart b, times e^{c/M} for the
transfer that goes on beside the training; with p = 1, memory always saves the run and the ratio is
e^{-lambda a} tau/(tau + s). Only (e^{theta (tau + s)} - 1)/tau depends on tau. It has a single
minimum, in closed form (`frequency.optimal_interval_s` with M = 1/theta and delta = s); where
Eq. 2 forbids that interval, the shortest allowed one is best.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from castor_policy.frequency import (
    exp_or_inf,
    expm1_ratio,
    highfreq_interval_iterations,
    min_interval_s,
    optimal_interval_s,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoTier:
    """A training job with checkpoints in memory and in storage.

    Attributes:
        iteration_s: iteration time, > 0.
        failure_rate_per_s: failures of the whole job a second, >= 0.
        memory_survival_probability: that after a failure every shard has a complete replica in
            the memory of a live machine, 0 to 1 (see `survival`; 1 for software failures).
        downtime_s: from a failure until retrieval can start, and from then until training runs,
            without the retrieval: detection, serialisation, replacement, restart, warm-up. >= 0.
        memory_checkpoint_s: until a memory checkpoint is complete, >= 0.
        memory_retrieval_s: to fetch from memory, >= 0.
        storage_stall_s: how long training waits for a storage checkpoint, >= 0.
        storage_checkpoint_s: from the end of that stall until the checkpoint is complete in
            storage, >= 0. Two transfers never overlap (Eq. 2).
        storage_retrieval_s: to fetch from storage, >= 0.
        memory_every: memory checkpoints are taken every so many iterations, or as often as Eq. 2
            allows where one takes longer than that.

    Raises:
        ValueError: a value is out of its range.
    """

    iteration_s: float
    failure_rate_per_s: float
    memory_survival_probability: float
    downtime_s: float
    memory_checkpoint_s: float
    memory_retrieval_s: float
    storage_stall_s: float
    storage_checkpoint_s: float
    storage_retrieval_s: float
    memory_every: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0.0 <= value < math.inf:
                raise ValueError(f"{field.name} is {value}: give a finite number of 0 or more")
        if self.iteration_s == 0.0:
            raise ValueError("iteration_s is 0: give the time of an iteration, above 0 s")
        if self.memory_survival_probability > 1.0:
            raise ValueError(
                f"memory_survival_probability is {self.memory_survival_probability}: "
                "give a probability of 0 to 1"
            )

    @property
    def memory_interval_s(self) -> float:
        """Time between memory checkpoints: the whole iterations that Eq. 2 asks for."""
        iterations = highfreq_interval_iterations(self.memory_checkpoint_s, self.iteration_s)
        return max(iterations, self.memory_every) * self.iteration_s

    @property
    def memory_rollback_s(self) -> float:
        """Mean work lost by a failure that memory survives (Eq. 1): t_ckpt + 1/(2f)."""
        return self.memory_checkpoint_s + self.memory_interval_s / 2.0

    @property
    def memory_recovery_s(self) -> float:
        """From a failure until the work lost by it is redone, with memory checkpoints."""
        return self.downtime_s + self.memory_retrieval_s + self.memory_rollback_s

    @property
    def storage_recovery_s(self) -> float:
        """From a failure until training goes on from the storage checkpoint."""
        return self.downtime_s + self.storage_retrieval_s

    @property
    def min_storage_interval_s(self) -> float:
        """Shortest work between storage checkpoints that Eq. 2 allows."""
        transfer_s = max(0.0, self.storage_checkpoint_s - self.storage_stall_s)
        return min_interval_s(transfer_s, self.iteration_s)


def storage_fallback_rate_per_s(config: TwoTier) -> float:
    """Return theta, how often training falls back to storage, a second of up time.

    lambda q / (q + p e^{-lambda a}): a little above lambda q, since a second failure during a
    recovery from memory can end in storage too.
    """
    lost = 1.0 - config.memory_survival_probability
    if lost == 0.0:
        return 0.0
    return config.failure_rate_per_s * lost / _share_settled_at_once(config)


def two_tier_effective_ratio(config: TwoTier, interval_s: float) -> float:
    """Return the effective training time ratio with tau seconds of work between storage saves.

    Net work over wall time in the long run, 0 to 1: the formula of this module's head.

    Args:
        config: the job.
        interval_s: tau, at least `config.min_storage_interval_s`; infinity: no storage saves.

    Returns:
        The ratio. 0 where recoveries are so long against the time between failures that the
        share of useful time is below what a float can hold.

    Raises:
        ValueError: the interval is shorter than Eq. 2 allows, or not a number.
    """
    if not interval_s >= config.min_storage_interval_s:
        raise ValueError(
            f"interval_s is {interval_s}: Eq. 2 allows {config.min_storage_interval_s} s and more"
        )
    settled = _share_settled_at_once(config)
    if settled == 0.0:
        return 0.0
    rate = config.failure_rate_per_s
    lost = 1.0 - config.memory_survival_probability
    recovery = 1.0
    if lost > 0.0:
        grown = rate * config.storage_recovery_s
        recovery += lost * grown * expm1_ratio(grown)
    fallback_rate = storage_fallback_rate_per_s(config)
    if interval_s == math.inf:
        return settled if fallback_rate == 0.0 else 0.0
    period_s = interval_s + config.storage_stall_s
    rework = exp_or_inf(fallback_rate * config.storage_checkpoint_s)
    rework *= expm1_ratio(fallback_rate * period_s)
    return interval_s / period_s * settled / (rework * recovery)


def optimal_storage_interval_s(config: TwoTier) -> float:
    """Return the work between storage checkpoints that maximises `two_tier_effective_ratio`.

    Exact: (1/theta) [1 + W0(-exp(-1 - theta s))] with theta of `storage_fallback_rate_per_s`, or
    the shortest interval that Eq. 2 allows where that is longer (the ratio falls from there on).
    About sqrt(2 s/theta): neither the transfer time nor the recovery times matter.

    Returns:
        Seconds; infinity where training never falls back to storage.
    """
    fallback_rate = storage_fallback_rate_per_s(config)
    mtbf_s = 1.0 / fallback_rate if fallback_rate > 0.0 else math.inf
    if mtbf_s == math.inf:
        return math.inf
    return max(config.min_storage_interval_s, optimal_interval_s(config.storage_stall_s, mtbf_s))


def _share_settled_at_once(config: TwoTier) -> float:
    """Return q + p sigma: a failure goes to storage, or its recovery from memory is undisturbed."""
    p = config.memory_survival_probability
    undisturbed = math.exp(-config.failure_rate_per_s * config.memory_recovery_s)
    return (1.0 - p) + p * undisturbed
