"""How likely k simultaneous machine failures are to be recoverable from CPU memory (sec. 4).

"k failures" are k machines drawn uniformly, as in the paper's Theorem 1, Corollary 1 and Fig. 9.
Probabilities are exact fractions; a caller turns them into floats at its edge. Placements that are
too entangled to count are sampled, and then come with a confidence interval.

Failures that come together (racks, switches, power) are in `castor_policy.survival_domains`.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from math import comb, sqrt

from castor_policy.placement import Placement
from castor_policy.survival_closed_form import (
    Terms,
    count_survivable,
    group_terms,
    multiply_terms,
    ring_terms,
    survival_at,
)
from castor_policy.survival_counting import (
    Component,
    ExactCountTooLargeError,
    components,
    count_component,
    multiply_counts,
)

__all__ = [
    "Estimate",
    "ExactCountTooLargeError",
    "RecoveryProbability",
    "corollary1_bound",
    "estimate_recovery_probability",
    "exact_or_estimate",
    "independent_recovery_probability",
    "published_ring_formula",
    "recovery_probability",
    "theorem1_gap",
    "upper_bound",
    "wilson_interval",
]

_WILSON_Z = 1.959963984540054
"""97.5 % point of the standard normal distribution, for two-sided 95 % intervals."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A sampled probability with its 95 % Wilson interval.

    Attributes:
        mean: share of the samples that were recoverable.
        low: lower end of the interval.
        high: upper end of the interval.
        samples: how many were drawn.
    """

    mean: float
    low: float
    high: float
    samples: int


@dataclass(frozen=True, slots=True)
class RecoveryProbability:
    """A probability of recovery from CPU memory: exact if ``estimate`` is None.

    Attributes:
        exact: the exact value, if it was counted.
        estimate: the sampled value, if it was not.
    """

    exact: Fraction | None
    estimate: Estimate | None

    def __post_init__(self) -> None:
        if (self.exact is None) == (self.estimate is None):
            raise ValueError("give either the exact probability or its estimate")

    @property
    def method(self) -> str:
        """How it was found: "exact" or "monte-carlo"."""
        return "exact" if self.exact is not None else "monte-carlo"

    @property
    def probability(self) -> float:
        """The value, or the estimate's mean."""
        if self.estimate is not None:
            return self.estimate.mean
        assert self.exact is not None
        return float(self.exact)


def recovery_probability(placement: Placement, failures: int) -> Fraction:
    """Return the exact probability that ``failures`` simultaneous failures are recoverable.

    Groups, rings and mixed placements of thousands of machines take milliseconds by the closed
    forms of `castor_policy.survival_closed_form`; others are counted component by component.

    Args:
        placement: where the shards' copies lie.
        failures: k, how many machines fail, drawn uniformly; 0 <= k <= N.

    Raises:
        ExactCountTooLargeError: there is no closed form and counting would take too long.
        ValueError: ``failures`` out of range.
    """
    _check_failures(placement.machines, failures)
    if failures < placement.replica_count:
        return Fraction(1)
    parts = components(placement.replicas)
    if all(part.kind != "other" for part in parts):
        terms: Terms = {(0, 0): 1}
        for part, times in _by_kind(parts):
            terms = multiply_terms(terms, _terms(part, times, failures))
            terms = {key: value for key, value in terms.items() if key[0] <= failures}
        survivable = count_survivable(terms, placement.machines, failures)
    else:
        factors = [(_counts(part, failures), times) for part, times in parts.items()]
        survivable = multiply_counts(factors, failures)
    return Fraction(survivable, comb(placement.machines, failures))


def independent_recovery_probability(
    placement: Placement, machine_probability: float | Fraction
) -> Fraction:
    """Return the exact probability of recovery when each machine fails on its own.

    The number of failures is then binomial: this is `recovery_probability` averaged over it.

    Args:
        placement: where the shards' copies lie.
        machine_probability: that a machine fails within the window looked at; see
            `castor_policy.survival_domains.failure_probability` for rates.

    Raises:
        ExactCountTooLargeError: there is no closed form and counting would take too long.
        ValueError: ``machine_probability`` is outside 0..1.
    """
    fails = as_probability("machine_probability", machine_probability)
    probability = Fraction(1)
    for part, times in components(placement.replicas).items():
        if part.kind == "other":
            size = part.machines
            counted = enumerate(count_component(part))
            terms = {(failed, size - failed): count for failed, count in counted}
        else:
            terms = _terms(part, 1)
        probability *= survival_at(terms, fails) ** times
    return probability


def estimate_recovery_probability(
    placement: Placement, failures: int, *, samples: int, rng: random.Random
) -> Estimate:
    """Estimate `recovery_probability` from ``samples`` uniformly drawn sets of failures.

    Raises:
        ValueError: ``failures`` or ``samples`` out of range.
    """
    _check_failures(placement.machines, failures)
    machines = range(placement.machines)
    recovered = sum(placement.survives(set(rng.sample(machines, failures))) for _ in range(samples))
    return wilson_interval(recovered, samples)


def exact_or_estimate(
    placement: Placement, failures: int, *, samples: int, rng: random.Random
) -> RecoveryProbability:
    """Return the exact probability where it can be counted, and an estimate elsewhere.

    Raises:
        ValueError: ``failures`` or ``samples`` out of range.
    """
    try:
        return RecoveryProbability(recovery_probability(placement, failures), None)
    except ExactCountTooLargeError:
        estimate = estimate_recovery_probability(placement, failures, samples=samples, rng=rng)
        return RecoveryProbability(None, estimate)


def wilson_interval(successes: int, samples: int) -> Estimate:
    """Return the share of successes with its 95 % Wilson score interval.

    Unlike the normal interval it is right near 0 and 1, where probabilities of recovery lie.

    Raises:
        ValueError: fewer than one sample, or more successes than samples.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; use at least 1")
    if not 0 <= successes <= samples:
        raise ValueError(f"successes is {successes}; use 0 to {samples}, the number of samples")
    mean = successes / samples
    z_squared = _WILSON_Z**2
    centre = (mean + z_squared / (2 * samples)) / (1 + z_squared / samples)
    spread = mean * (1 - mean) / samples + z_squared / (4 * samples**2)
    half = _WILSON_Z * sqrt(spread) / (1 + z_squared / samples)
    # Rounding must not push the ends past the mean or past a probability.
    low = 0.0 if successes == 0 else min(mean, max(0.0, centre - half))
    high = 1.0 if successes == samples else max(mean, min(1.0, centre + half))
    return Estimate(mean, low, high, samples)


def corollary1_bound(machines: int, replicas: int, failures: int) -> Fraction:
    """Return Corollary 1's lower bound on the probability that Algorithm 1 recovers.

    1 if k < m, else max(0, 1 - n C(N-m, k-m) / C(N, k)) with n = N/m host sets: the union bound
    over the host sets, exact up to k = 2m - 1. The paper states it for m | N. Where m does not
    divide N, the same argument holds with the n = g - 1 + r host sets of Algorithm 1's mixed
    placement (g = floor(N/m), a ring of r = N - m(g-1)); that is what is returned then, and it is
    a lower bound as well. It says nothing about rings over all machines or other placements.

    Raises:
        ValueError: not 1 <= replicas <= machines, or ``failures`` out of range.
    """
    _check_sizes(machines, replicas)
    return _union_bound(machines, replicas, failures, _algorithm1_host_sets(machines, replicas))


def published_ring_formula(machines: int, replicas: int, failures: int) -> Fraction:
    """Return what the paper plots for the ring in Fig. 9: a union bound, not the probability.

    max(0, 1 - N C(N-m, k-m) / C(N, k)). It counts failures that lose several shards several times:
    at N=16, m=2, k=3 it gives 0.6, and the ring survives with probability 22/35 = 0.62857.

    Raises:
        ValueError: not 1 <= replicas <= machines, or ``failures`` out of range.
    """
    _check_sizes(machines, replicas)
    return _union_bound(machines, replicas, failures, machines)


def upper_bound(machines: int, replicas: int) -> Fraction:
    """Return the most that any placement reaches when exactly m machines fail at once.

    1 - ceil(N/m) / C(N, m) (Theorem 1's proof): every machine is in the host set of its own shard,
    so there are at least ceil(N/m) host sets, and each is one way to lose a shard.

    Raises:
        ValueError: not 1 <= replicas <= machines.
    """
    _check_sizes(machines, replicas)
    return 1 - Fraction(-(-machines // replicas), comb(machines, replicas))


def theorem1_gap(machines: int, replicas: int) -> Fraction:
    """Return by how much Algorithm 1 stays below `upper_bound` when m machines fail.

    0 if m | N, else (m + q - 2) / C(N, m) with q = N mod m, which is at most (2m-3) / C(N, m), the
    limit that Theorem 1 states. (Eq. 4 prints "<", but q = m - 1 reaches it.)

    Raises:
        ValueError: not 1 <= replicas <= machines.
    """
    _check_sizes(machines, replicas)
    excess = _algorithm1_host_sets(machines, replicas) - -(-machines // replicas)
    return Fraction(excess, comb(machines, replicas))


def as_probability(name: str, value: float | Fraction) -> Fraction:
    """Return ``value`` as the fraction that it is exactly.

    Raises:
        ValueError: it is not within 0..1; ``name`` says what it was.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; use a probability from 0 to 1")
    return Fraction(value)


def _algorithm1_host_sets(machines: int, replicas: int) -> int:
    if machines % replicas == 0:
        return machines // replicas
    plain_groups = machines // replicas - 1
    return plain_groups + machines - replicas * plain_groups


def _union_bound(machines: int, replicas: int, failures: int, host_sets: int) -> Fraction:
    _check_failures(machines, failures)
    if failures < replicas:
        return Fraction(1)
    containing = comb(machines - replicas, failures - replicas)
    return max(Fraction(0), 1 - Fraction(host_sets * containing, comb(machines, failures)))


def _by_kind(parts: Counter[Component]) -> list[tuple[Component, int]]:
    """Put the many groups before a ring, so that the product of terms grows last."""
    return sorted(parts.items(), key=lambda item: (item[0].kind, item[0].machines))


def _terms(part: Component, times: int, most_failed: int | None = None) -> Terms:
    if part.kind == "group":
        return group_terms(part.machines, times, most_failed)
    terms: Terms = {(0, 0): 1}
    for _ in range(times):
        terms = multiply_terms(terms, ring_terms(part.machines, part.replicas, most_failed))
    return terms


def _counts(part: Component, failures: int) -> list[int]:
    if part.kind == "other":
        return count_component(part, failures)
    terms = _terms(part, 1)
    most = min(failures, part.machines)
    return [count_survivable(terms, part.machines, failed) for failed in range(most + 1)]


def _check_sizes(machines: int, replicas: int) -> None:
    if not 1 <= replicas <= machines:
        raise ValueError(f"replicas is {replicas}; use 1 to {machines}, the number of machines")


def _check_failures(machines: int, failures: int) -> None:
    if not 0 <= failures <= machines:
        raise ValueError(f"failures is {failures}; use 0 to {machines}, the number of machines")
