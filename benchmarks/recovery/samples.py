"""Repeated measurements and what is told of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and range of repetitions.

    Attributes:
        values: as measured, in order.
    """

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Take repetitions; at least one.

        Raises:
            ValueError: there is none.
        """
        if not values:
            raise ValueError("nothing was measured: run longer")
        return cls(tuple(values))

    @property
    def median(self) -> float:
        """Their median."""
        return median(self.values)

    def quantile(self, share: float) -> float:
        """Return the smallest value that at least that share does not exceed."""
        ordered = sorted(self.values)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    def text(self, digits: int = 2, scale: float = 1.0) -> str:
        """Return "median (least to most)"."""
        low, high = min(self.values) * scale, max(self.values) * scale
        middle = f"{self.median * scale:.{digits}f}"
        return middle if low == high else f"{middle} ({low:.{digits}f} to {high:.{digits}f})"

    def to_json(self) -> dict[str, object]:
        """Return all of it."""
        return {"median": self.median, "n": len(self.values), "values": list(self.values)}
