"""A hop's start-up time and bandwidth, fitted: f(s) = alpha + s/B (Gemini sec. 5.3).

The runtime fits the link that it plans with, analysis the one that it simulates with.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from castor_policy.chunk_schedule import BITS_NS, Link


def fit_link(sizes_bytes: Sequence[int], times_ns: Sequence[int]) -> Link:
    """Return alpha and B by least squares, alpha no larger than what the smallest piece took.

    Errors are absolute, not relative: large pieces tell B. A small one may pass at once where a
    link is shaped by a token bucket, and would make the link look faster than it is. A line that
    would start below 0 is drawn through 0.

    Raises:
        ValueError: there are not two sizes and a time above 0 for each.
    """
    if len(set(sizes_bytes)) < 2 or len(sizes_bytes) != len(times_ns) or min(times_ns) <= 0:
        raise ValueError("give two sizes or more, and for each the time above 0 that it took")
    rows = list(zip(sizes_bytes, times_ns, strict=True))
    mean_bytes = Fraction(sum(sizes_bytes), len(rows))
    mean_ns = Fraction(sum(times_ns), len(rows))
    slope = sum((size - mean_bytes) * (at - mean_ns) for size, at in rows) / sum(
        (size - mean_bytes) ** 2 for size in sizes_bytes
    )
    alpha_ns = mean_ns - slope * mean_bytes
    if alpha_ns < 0 or slope <= 0:
        alpha_ns = Fraction(0)
        slope = Fraction(sum(size * at for size, at in rows), sum(s * s for s in sizes_bytes))
    return Link(min(round(alpha_ns), *times_ns), max(1, int(BITS_NS / slope)))
