"""From the tallies of replications to the figures that a paper quotes, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from castor_sim.setup import Setup
from castor_sim.tally import SOURCE_NAMES, WASTE_KINDS, Tally

NS_PER_S = 1e9


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over replications with its 95 % confidence interval (Student's t)."""

    mean: float
    low: float
    high: float
    known: bool = True
    """False for a single value: it has no interval, and `low` and `high` are the value itself."""

    def as_json(self) -> dict[str, float | None]:
        """Return `mean`, `ci95_low`, `ci95_high`; null where no interval is known."""
        low, high = (self.low, self.high) if self.known else (None, None)
        return {"mean": self.mean, "ci95_low": low, "ci95_high": high}


def interval_of(
    values: Sequence[float], *, least: float = -math.inf, most: float = math.inf
) -> Interval:
    """Return the mean and its 95 % interval, cut to what the figure can be at all.

    Args:
        values: one a replication, at least one.
        least: the least that the figure can be.
        most: the most that it can be.
    """
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Interval(mean, mean, mean, known=False)
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * spread
    return Interval(mean, max(least, mean - half), min(most, mean + half))


def effective_ratio(tally: Tally) -> float:
    """Return useful training time over wall time (docs/paper.md, sec. 7); 1 for an empty run."""
    return tally.useful_ns / tally.wall_ns if tally.wall_ns else 1.0


@dataclass(frozen=True, slots=True)
class Summary:
    """One strategy over its replications; counts and times are means over them.

    Attributes:
        ratio: effective training time ratio.
        wasted_s: seconds by part.
        failures: by kind, and `spare` for those that hit no machine of the job.
        recovered_from: failures by what their recovery loaded from.
        recoveries: resumptions of training.
        recoveries_in_place: those of them that restarted only the trainers that were lost.
        iterations: iterations kept.
        wall_s: simulated time.
        gpu_hours_lost: GPU hours in which nothing useful was trained.
        money_lost: those at the given price.
        standby_empty: lost machines that found no standby ready.
        set_aside: slow machines whose place a standby took.
        corruptions: silent errors that were seen.
    """

    replications: int
    ratio: Interval
    wasted_s: dict[str, float]
    failures: dict[str, float]
    recovered_from: dict[str, float]
    recoveries: float
    recoveries_in_place: float
    iterations: Interval
    wall_s: float
    gpu_hours_lost: Interval
    money_lost: Interval
    standby_empty: float
    set_aside: float
    corruptions: float

    def as_json(self) -> dict[str, Any]:
        """Return the object that `castor simulate --json` prints for a strategy."""
        return {
            "effective_training_time_ratio": self.ratio.as_json(),
            "wasted_time_s": {**self.wasted_s, "total": math.fsum(self.wasted_s.values())},
            "failures": self.failures,
            "recovered_from": self.recovered_from,
            "recoveries": self.recoveries,
            "recoveries_in_place": self.recoveries_in_place,
            "iterations": self.iterations.as_json(),
            "wall_time_s": self.wall_s,
            "gpu_hours_lost": self.gpu_hours_lost.as_json(),
            "money_lost": self.money_lost.as_json(),
            "standby_empty": self.standby_empty,
            "set_aside": self.set_aside,
            "corruptions": self.corruptions,
            "replications": self.replications,
        }


def summarise(tallies: Sequence[Tally], *, gpus: int, price_per_gpu_hour: float) -> Summary:
    """Summarise the replications of one strategy.

    Args:
        tallies: one a replication, at least one.
        gpus: of the job.
        price_per_gpu_hour: money for one GPU for an hour.
    """
    count = len(tallies)

    def mean(name: str, scale: float = 1.0) -> float:
        # Integer sums first: the mean then does not hang on the order of the replications.
        total: int = sum(getattr(tally, name) for tally in tallies)
        return total / scale / count

    hours = [tally.wasted_ns() / NS_PER_S / 3600 * gpus for tally in tallies]
    software, hardware = mean("software_failures"), mean("hardware_failures")
    return Summary(
        replications=count,
        ratio=interval_of([effective_ratio(tally) for tally in tallies], least=0, most=1),
        wasted_s={part: mean(f"{part}_ns", NS_PER_S) for part in WASTE_KINDS},
        failures={
            "total": software + hardware,
            "software": software,
            "hardware": hardware,
            "spare": mean("spare_failures"),
        },
        recovered_from={name: mean(f"recovered_{name}") for name in SOURCE_NAMES},
        recoveries=mean("recoveries"),
        recoveries_in_place=mean("recoveries_in_place"),
        iterations=interval_of([tally.iterations for tally in tallies], least=0),
        wall_s=mean("wall_ns", NS_PER_S),
        gpu_hours_lost=interval_of(hours, least=0),
        money_lost=interval_of([hour * price_per_gpu_hour for hour in hours], least=0),
        standby_empty=mean("standby_empty"),
        set_aside=mean("set_aside"),
        corruptions=mean("corruptions"),
    )


def summarise_runs(setup: Setup, runs: Mapping[str, Sequence[Tally]]) -> dict[str, Summary]:
    """Summarise the replications of each strategy at the price that the setup names."""
    gpus, price = setup.job.gpus, setup.price_per_gpu_hour
    return {
        name: summarise(tallies, gpus=gpus, price_per_gpu_hour=price)
        for name, tallies in runs.items()
    }
