"""Which rank the others wait for, iteration after iteration.

All ranks of a synchronous job take equally long for an iteration, for the fast ones wait for the
slow. What tells them apart is the part of it that a rank takes itself: not in a collective, nor for
a checkpoint. What one takes longer itself than the others' median is what it costs all of them.

One late iteration is no slow rank, and a loaded machine makes any rank late: a rank is named by
*looks*, each the mean of as many iterations as take a second, that all say the same, so many in a
row. Where most ranks are slow the median is slow, too, and nobody is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from castor_policy.membership import WatchLimits

LOOK_S = 1.0
"""A look takes in whole iterations, one or more, until they have taken so long."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What a slow rank costs.

    Attributes:
        is_over: it is slow no more; else it has been found to be.
        own_s: what it takes itself in an iteration, in the mean.
        others_s: the median of what the others do.
        costs_s: the difference: every iteration of the job takes so much longer.
        share: that is this share of an iteration.
        iterations: over which it was slow, so far.
        lost_s: what they have taken longer, all of them together.
    """

    is_over: bool
    own_s: float
    others_s: float
    costs_s: float
    share: float
    iterations: int
    lost_s: float


@dataclass(slots=True)
class _Sums:
    """Over some iterations, in seconds."""

    iterations: int = 0
    seconds: float = 0.0
    own_s: float = 0.0
    others_s: float = 0.0

    def add(self, more: _Sums) -> None:
        self.iterations += more.iterations
        self.seconds += more.seconds
        self.own_s += more.own_s
        self.others_s += more.others_s

    @property
    def share(self) -> float:
        return (self.own_s - self.others_s) / self.seconds

    def costs(self, *, is_over: bool) -> Costs:
        lost_s = max(0.0, self.own_s - self.others_s)
        return Costs(
            is_over,
            own_s=self.own_s / self.iterations,
            others_s=self.others_s / self.iterations,
            costs_s=lost_s / self.iterations,
            share=lost_s / self.seconds,
            iterations=self.iterations,
            lost_s=lost_s,
        )


class SlowRank:
    """Says of one rank of a generation when it begins to be slow, and when that is over.

    Args:
        rank: which.
        limits: of the job: `slow_share`, and `slow_looks` in a row.
        look_s: how long a look is at least.
    """

    def __init__(self, rank: int, limits: WatchLimits, look_s: float = LOOK_S) -> None:
        self._rank = rank
        self._share = limits.slow_share
        self._looks = limits.slow_looks
        self._look_s = look_s
        self._own_s: list[float] = []
        self._look = _Sums()
        self._in_a_row = 0
        """Looks that say something else than what is named."""
        self._unlike = _Sums()
        """Over those."""
        self._named: _Sums | None = None
        """Since it began to be slow; None: it is not named."""

    def observe(self, seconds: float, own_s: Sequence[float], iterations: int = 1) -> Costs | None:
        """Take some iterations in; return what is news, if anything is.

        Args:
            seconds: that they took together.
            own_s: of each rank, what it took of that itself.
            iterations: how many they are.
        """
        if not self._share or len(own_s) < 2 or not iterations:
            return None
        self._own_s = [a + b for a, b in zip(self._own_s or [0.0] * len(own_s), own_s, strict=True)]
        self._look.iterations += iterations
        self._look.seconds += seconds
        if self._look.seconds < self._look_s:
            return None
        look, self._look, taken_s = self._look, _Sums(), self._own_s
        self._own_s = []
        look.own_s = taken_s.pop(self._rank)
        look.others_s = median(taken_s)
        return self._judge(look)

    def _judge(self, look: _Sums) -> Costs | None:
        is_slow, named = look.share >= self._share, self._named
        self._unlike.add(look)
        if is_slow == (named is not None):
            if named is not None:
                named.add(self._unlike)  # what was unlike it was a pause
            self._in_a_row, self._unlike = 0, _Sums()
            return None
        self._in_a_row += 1
        if self._in_a_row < self._looks:
            return None
        self._named = self._unlike if is_slow else None
        self._in_a_row, self._unlike = 0, _Sums()
        told = named if self._named is None else self._named
        assert told is not None, "it is named, or was"
        return told.costs(is_over=not is_slow)
