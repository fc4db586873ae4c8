"""The axes of Fig. 15 from the event simulation: failures one by one, also several at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from castor_analysis.summary import effective_ratio, interval_of
from castor_sim.setup import Setup
from paper_figures.figure_data import Effort, Row
from paper_figures.paper_job import run_all, setup_of
from paper_figures.published import PublishedValue

STRATEGIES = {"Gemini": "gemini", "HighFreq": "highfreq", "Strawman": "strawman"}

REGULAR = "simulated, regular"
POISSON = "simulated, Poisson"
INDEPENDENT_HARDWARE = "simulated, hardware"
CORRELATED = "simulated, hardware, correlated"
CORRELATED_AWARE = "simulated, hardware, correlated, replicas across racks"

RACK = 4
"""Machines of a failure domain; four of them in the paper's job of 16."""
_RACKED_SHARE = 0.5


_NOTES = {
    ("HighFreq", POISSON): "a failure during a recovery, or before a checkpoint is complete, "
    "costs less than the 26 min charged; and torch.save's share is charged as in Eq. 1",
    ("Strawman", POISSON): "the formula charges every failure 112 min; where the next comes "
    "sooner, no more than the gap between the two can be lost",
}


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of failures.

    Attributes:
        series: how its lines are called, after the scheme.
        schemes: which lines it has.
        compared: whether the paper's line stands on the same assumptions.
    """

    series: str
    schemes: tuple[str, ...]
    compared: bool

    def settings(self, failures_per_day: float) -> dict[str, str]:
        """Return the experiment's settings for a number of failed machines a day.

        Of correlated failures, half of the failed machines are those of racks that go down whole,
        so that as many machines fail a day as in the kinds without.
        """
        process = '"regular"' if self.series == REGULAR else '"poisson"'
        settings = {
            "failures.process": process,
            "failures.per_day": repr(failures_per_day),
            "failures.hardware_share": "0.0" if self.compared else "1.0",
        }
        if self.series in (CORRELATED, CORRELATED_AWARE):
            alone = failures_per_day * (1 - _RACKED_SHARE)
            # A rack's rate for each of its machines is that of the share of one machine.
            of_a_rack = failures_per_day * _RACKED_SHARE / 16
            settings["failures.per_day"] = repr(alone)
            settings["failures.domains"] = f'{{size = {RACK}, rate = "{of_a_rack!r}/day"}}'
        if self.series == CORRELATED_AWARE:
            settings["placement"] = '"domains"'
            settings["placement_domains"] = str(RACK)
        return settings


KINDS = (
    Kind(REGULAR, tuple(STRATEGIES), compared=True),
    Kind(POISSON, tuple(STRATEGIES), compared=True),
    Kind(INDEPENDENT_HARDWARE, tuple(STRATEGIES), compared=False),
    Kind(CORRELATED, tuple(STRATEGIES), compared=False),
    Kind(CORRELATED_AWARE, ("Gemini",), compared=False),
)


def simulated_rows(
    axes: Mapping[str, Mapping[str, float]],
    published: Mapping[str, Mapping[tuple[str, str], PublishedValue]],
    effort: Effort,
) -> Iterator[Row]:
    """Yield, for each kind of failures and scheme, the ratio at every point of both panels.

    The job keeps 16 machines in panel b, as in the paper: there, a larger cluster only fails more
    often; what a failure costs stays. All schemes meet the same failures at the same seed.

    Args:
        axes: for each panel, its points with their failures a day.
        published: for each panel, the paper's ratio by scheme and point.
        effort: how many seeds and days.
    """
    points = [(panel, point, rate) for panel, axis in axes.items() for point, rate in axis.items()]
    for kind in KINDS:
        effort.progress(f"fig15: {kind.series}")
        setups = {rate: _setup(kind, rate, effort) for rate in sorted({p[2] for p in points})}
        for scheme in kind.schemes:
            work = [
                (setup, STRATEGIES[scheme], seed)
                for setup in setups.values()
                for seed in effort.all_seeds()
            ]
            ratios = [effective_ratio(tally) for tally in run_all(work)]
            at_rate = {
                rate: interval_of(ratios[i * effort.seeds : (i + 1) * effort.seeds])
                for i, rate in enumerate(setups)
            }
            for panel, point, rate in points:
                interval = at_rate[rate]
                yield Row(
                    figure=panel,
                    series=f"{scheme}, {kind.series}",
                    point=point,
                    ours=interval.mean,
                    unit="ratio",
                    paper=published[panel][(scheme, point)].value if kind.compared else None,
                    note=_NOTES.get((scheme, kind.series), ""),
                    low=interval.low,
                    high=interval.high,
                )


def _setup(kind: Kind, failures_per_day: float, effort: Effort) -> Setup:
    return setup_of({**kind.settings(failures_per_day), "duration": f'"{effort.days}d"'})
