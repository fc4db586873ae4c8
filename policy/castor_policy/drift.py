"""When a schedule no longer fits the iterations that it was made for.

A schedule is made from a profile (Gemini sec. 5.4). Another sequence length, a slower network or a
hotter machine change the idle spans later. The rule compares the spans that a rank contributed to
the schedule with those that it has measured since, over a window of iterations, so that one slow
iteration changes nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from fractions import Fraction

THRESHOLD = Fraction(1, 5)
"""Share of the scheduled idle time that may lie elsewhere, or be gone, before it is a drift. Twice
the deviation of idle spans that the paper measured (under 10 %)."""

FLOOR_NS = 2_000_000
"""Less in all is no drift: it is what clocks and an operating system add to an iteration."""


def has_drifted(
    scheduled_spans_ns: Sequence[int],
    recent_spans_ns: Sequence[Sequence[int]],
    threshold: Fraction = THRESHOLD,
    floor_ns: int = FLOOR_NS,
) -> bool:
    """Return whether the idle spans have moved away from those that were scheduled.

    They have if most of the window's iterations have another number of spans, or if the distances
    of each span's median to the scheduled one add up to more than `threshold` of all scheduled idle
    time. Where spans change for good, a window of w iterations shows it after half of them.

    Args:
        scheduled_spans_ns: this rank's idle spans in the profile that the schedule was made from.
        recent_spans_ns: of the window's iterations, each rank's own again; oldest first.
        threshold: above 0.
        floor_ns: what is too little to matter, >= 0.

    Raises:
        ValueError: an argument is out of its range.
    """
    if threshold <= 0:
        raise ValueError(f"threshold is {threshold}: give a share above 0")
    if floor_ns < 0:
        raise ValueError(f"floor_ns is {floor_ns}: give 0 ns or more")
    alike = [spans for spans in recent_spans_ns if len(spans) == len(scheduled_spans_ns)]
    if 2 * len(alike) < len(recent_spans_ns):
        return True
    if not alike:
        return False
    moved_ns: int = sum(
        abs(statistics.median_low(column) - scheduled_ns)
        for scheduled_ns, column in zip(scheduled_spans_ns, zip(*alike, strict=True), strict=True)
    )
    return moved_ns > floor_ns and moved_ns > threshold * sum(scheduled_spans_ns)
