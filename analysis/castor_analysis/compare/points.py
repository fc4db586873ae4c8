"""One quantity in one setting, measured and simulated, and how far the two are apart."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

SettingValue = str | int | float

S: Final = "s"
SHARE: Final = "share"
ITERATIONS: Final = "iterations"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A check of the simulator, or, of a run that it was fitted on, a residual.

    Attributes:
        quantity: such as "iteration_s"; of a recovery "recovery_total_s" and its phases.
        setting: what tells this point from others of the quantity: "link", "model", "scheme", of a
            recovery "failure", and so on. Values are short enough for a table.
        unit: S, SHARE or ITERATIONS.
        measured: the median over iterations and repetitions.
        spread: 10th and 90th percentile of the same.
        simulated: what was predicted, without having seen this run.
        samples: how many values the median is of.
        runs: names of the runs' folders that were measured.

    Raises:
        ValueError: a figure is no number, or is below 0.
    """

    quantity: str
    setting: Mapping[str, SettingValue]
    unit: str
    measured: float
    spread: tuple[float, float]
    simulated: float
    samples: int = 1
    runs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("measured", self.measured), ("simulated", self.simulated)):
            # Also refuses what is not a number, which compares with nothing.
            if not 0 <= value < float("inf"):
                raise ValueError(f"{self.quantity}: {name} is {value}; give a number of 0 or more")

    @property
    def error(self) -> float | None:
        """(simulated - measured)/measured; None where nothing was measured but something expected.

        A count that is 0 on both sides has no error.
        """
        if self.measured == 0:
            return 0.0 if self.simulated == 0 else None
        return (self.simulated - self.measured) / self.measured

    def to_json(self) -> dict[str, Any]:
        """Return the point as compare.json holds it."""
        return {
            "quantity": self.quantity,
            "setting": dict(self.setting),
            "unit": self.unit,
            "measured": self.measured,
            "spread": list(self.spread),
            "simulated": self.simulated,
            "error": self.error,
            "samples": self.samples,
            "runs": list(self.runs),
        }


def point_of_samples(
    quantity: str,
    setting: Mapping[str, SettingValue],
    unit: str,
    samples: Sequence[float],
    simulated: float,
    runs: Iterable[str] = (),
) -> Point:
    """Return the point whose measured side is these samples: their median, and their spread.

    Raises:
        ValueError: there is no sample, or one is no number of 0 or more.
    """
    if not samples:
        raise ValueError(f"{quantity}: no sample was measured; give at least one")
    return Point(
        quantity=quantity,
        setting=setting,
        unit=unit,
        measured=statistics.median(samples),
        spread=(quantile(samples, 0.1), quantile(samples, 0.9)),
        simulated=simulated,
        samples=len(samples),
        runs=tuple(runs),
    )


def quantile(samples: Sequence[float], share: float) -> float:
    """Return a quantile, straight between the two samples that it lies between.

    Args:
        samples: at least one.
        share: 0 to 1.
    """
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def absolute_errors(points: Iterable[Point]) -> list[float]:
    """Return the sizes of the errors, smallest first; points without an error left out."""
    return sorted(abs(point.error) for point in points if point.error is not None)
