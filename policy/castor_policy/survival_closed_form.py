"""Closed forms for groups and rings: which sets of failures they survive, counted.

The survivable sets of failed machines are written as a signed sum of simple events "these f
machines fail and those a stay alive, whatever the rest does". Each event counts for
C(N - f - a, k - f) sets of k failures out of N, and has probability q^f (1-q)^a when machines fail
independently, so one sum answers both questions. Sums of separate machines multiply.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from math import comb, perm

Terms = dict[tuple[int, int], int]
"""Coefficient of each event, by (failed, alive)."""


def group_terms(size: int, groups: int = 1, most_failed: int | None = None) -> Terms:
    """Terms of ``groups`` groups whose shards all lie on all ``size`` members: (1 - q^size)^groups.

    A group is lost only as a whole (sec. 4, proof of Corollary 1). Terms of more than
    ``most_failed`` failures are left out: whoever counts fewer has no use for them.
    """
    most = groups if most_failed is None else min(groups, most_failed // size)
    return {(size * lost, 0): (-1) ** lost * comb(groups, lost) for lost in range(most + 1)}


def ring_terms(machines: int, replicas: int, most_failed: int | None = None) -> Terms:
    """Terms of a ring of n machines, each sending to the next m - 1, where m <= n.

    It survives if no m machines in a row fail. Counting the circular strings without m failures in
    a row (the logarithmic derivative of the linear strings' generating function) gives
    sum_j (-1)^j n/(n-jm) C(n-jm, j) (q^m (1-q))^j - q^n: j disjoint runs of m failures, each ended
    by a live machine; the last term takes away the ring without any live machine.
    Terms of more than ``most_failed`` failures are left out, but for that one.
    """
    n, m = machines, replicas
    terms: Terms = {}
    most = n // (m + 1) if most_failed is None else min(n // (m + 1), most_failed // m)
    for runs in range(most + 1):
        rest = n - runs * m
        terms[(runs * m, runs)] = (-1) ** runs * (n * comb(rest, runs) // rest)
    terms[(n, 0)] = terms.get((n, 0), 0) - 1
    return terms


def multiply_terms(left: Terms, right: Terms) -> Terms:
    """Terms of two sets of machines that fail and survive apart from each other."""
    product: Terms = {}
    for (failed, alive), coefficient in left.items():
        for (more_failed, more_alive), factor in right.items():
            key = (failed + more_failed, alive + more_alive)
            product[key] = product.get(key, 0) + coefficient * factor
    return product


def count_survivable(terms: Terms, machines: int, failures: int) -> int:
    """Number of sets of ``failures`` failed machines, out of ``machines``, that are survivable."""
    total = 0
    size, chosen, choices = -1, -1, 0
    for failed, alive, coefficient in _chains(terms):
        new_size, new_chosen = machines - failed - alive, failures - failed
        if not 0 <= new_chosen <= new_size:
            continue
        left, new_left = size - chosen, new_size - new_chosen
        if 0 <= new_chosen <= chosen and 0 <= new_left <= left:
            # One binomial from the last one: a few small factors in place of thousands.
            choices *= perm(chosen, chosen - new_chosen) * perm(left, left - new_left)
            choices //= perm(size, size - new_size)
        else:
            choices = comb(new_size, new_chosen)
        size, chosen = new_size, new_chosen
        total += coefficient * choices
    return total


def survival_at(terms: Terms, failure_probability: Fraction) -> Fraction:
    """Probability of survival when each machine fails with ``failure_probability``, on its own."""
    fail, scale = failure_probability.numerator, failure_probability.denominator
    live = scale - fail
    total, reached = 0, 0  # the sum so far, over scale ** reached
    last_failed, last_alive, weight = 0, 0, 1
    for failed, alive, coefficient in sorted(_chains(terms), key=lambda term: term[0] + term[1]):
        if failed >= last_failed and alive >= last_alive:
            weight *= fail ** (failed - last_failed) * live ** (alive - last_alive)
        else:
            weight = fail**failed * live**alive
        last_failed, last_alive = failed, alive
        total = total * scale ** (failed + alive - reached) + coefficient * weight
        reached = failed + alive
    return Fraction(total, scale**reached)


def _chains(terms: Terms) -> Iterable[tuple[int, int, int]]:
    """Return (failed, alive, coefficient), ordered so that both mostly grow from term to term."""
    return [
        (failed, alive, coefficient)
        for (alive, failed), coefficient in sorted(
            ((alive, failed), coefficient) for (failed, alive), coefficient in terms.items()
        )
        if coefficient
    ]
