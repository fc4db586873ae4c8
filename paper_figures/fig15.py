"""Fig. 15: effective training time ratio against failures a day and against the cluster's size.

The paper's figure is a formula. Below its lines stand the same axes from the event simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from castor_policy.frequency import wasted_time_s
from castor_policy.published import (
    gemini_effective_ratio,
    highfreq_effective_ratio,
    opt_failures_per_day,
    strawman_effective_ratio,
)
from castor_traces.picture_style import BLACK, BLUE, GREEN, GREY, PURPLE, VERMILION, picture
from paper_figures.fig15_simulated import (
    CORRELATED,
    CORRELATED_AWARE,
    INDEPENDENT_HARDWARE,
    POISSON,
    REGULAR,
    simulated_rows,
)
from paper_figures.figure_data import Effort, FigureData, Row, marks, ours, xs
from paper_figures.paper_job import (
    DAY_S,
    DETECTION_S,
    HIGHFREQ_SAVE_S,
    SERIALISATION_S,
    STRAWMAN_INTERVAL_S,
    WARM_UP_S,
)
from paper_figures.published import PublishedValue, published_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCHEMES = ("Gemini", "HighFreq", "Strawman")
PANELS = ("fig15a", "fig15b")
RATES_PER_DAY = tuple(range(1, 9))
INSTANCES = (200, 400, 600, 800, 900, 1000)

PUBLISHED_FORMULA = "the paper's formula"
OWN_FORMULA = "Eq. 1"

_PUBLISHED: dict[str, Callable[[float], float]] = {
    "Gemini": gemini_effective_ratio,
    "HighFreq": highfreq_effective_ratio,
    "Strawman": strawman_effective_ratio,
}

_NOTES = {
    ("Gemini", OWN_FORMULA): "the paper's 9 min a failure are 430 s of recovery and 1.5 "
    "iterations, 8.7 min, rounded up",
    ("HighFreq", OWN_FORMULA): "the paper takes torch.save's share off the whole day, downtime "
    "included; only the time that trains bears it",
}

# Fig. 15 rests on round figures: 480 s for a transfer, and one checkpoint in 480 s of training.
_ITERATION_S = 60.0
_STORAGE_S = 480.0
_OWN_MEMORY_S = 1.5


def own_effective_ratio(scheme: str, failures_per_day: float) -> float:
    """Return the ratio by Eq. 1 and sec. 7.3's measured recovery, nothing rounded.

    A failure stops the job for detection, serialisation or torch.load, and warm-up, and wastes
    what Eq. 1 says. The rest of the day trains, checkpoint stalls included: where the paper
    takes the stalls off the whole day, downtime has none.

    Raises:
        KeyError: no such scheme.
        ValueError: the rate is negative.
    """
    if failures_per_day < 0:
        raise ValueError(f"failures_per_day is {failures_per_day}: give 0 or more")
    wasted_s, restart_s, training = {
        "Gemini": (
            wasted_time_s(_ITERATION_S, 1 / _ITERATION_S, _OWN_MEMORY_S),
            SERIALISATION_S,
            1.0,
        ),
        "HighFreq": (
            wasted_time_s(_STORAGE_S, 1 / (_STORAGE_S + HIGHFREQ_SAVE_S), _STORAGE_S),
            HIGHFREQ_SAVE_S,
            _STORAGE_S / (_STORAGE_S + HIGHFREQ_SAVE_S),
        ),
        "Strawman": (
            wasted_time_s(_STORAGE_S, 1 / STRAWMAN_INTERVAL_S, _STORAGE_S),
            HIGHFREQ_SAVE_S,
            1.0,
        ),
    }[scheme]
    lost_s = failures_per_day * (wasted_s + DETECTION_S + restart_s + WARM_UP_S)
    return training * max(0.0, 1 - lost_s / DAY_S)


def axis_of(panel: str) -> dict[str, float]:
    """Return the panel's points, each with its failures a day."""
    if panel == "fig15a":
        return {str(rate): float(rate) for rate in RATES_PER_DAY}
    return {str(count): opt_failures_per_day(count) for count in INSTANCES}


def compute(effort: Effort) -> FigureData:
    """Return the paper's lines, Eq. 1's, and the event simulation's with 95 % bands."""
    axes = {panel: axis_of(panel) for panel in PANELS}
    published = {panel: published_values(panel) for panel in PANELS}
    rows = [row for panel in PANELS for row in _formulas(panel, axes[panel], published[panel])]
    rows += simulated_rows(axes, published, effort)
    return FigureData(tuple(sorted(rows, key=lambda row: row.figure)))


def _formulas(
    panel: str, axis: dict[str, float], published: dict[tuple[str, str], PublishedValue]
) -> Iterator[Row]:
    for scheme in SCHEMES:
        lines: tuple[tuple[str, Callable[[float], float]], ...] = (
            (PUBLISHED_FORMULA, _PUBLISHED[scheme]),
            (OWN_FORMULA, partial(own_effective_ratio, scheme)),
        )
        for line, ratio in lines:
            for point, rate in axis.items():
                yield Row(
                    figure=panel,
                    series=f"{scheme}, {line}",
                    point=point,
                    ours=ratio(rate),
                    unit="ratio",
                    paper=published[(scheme, point)].value,
                    note=_NOTES.get((scheme, line), ""),
                )


_STYLES = {"Gemini": (BLUE, "o"), "HighFreq": (GREEN, "^"), "Strawman": (VERMILION, "s")}
_AWARE_STYLE = (PURPLE, "D")


def draw(data: FigureData, path_stem: str | Path) -> None:
    """Draw both panels three times: formulas, independent and correlated failures; PNG and PDF."""
    with picture(path_stem, 6.4) as figure:
        rows = figure.subplots(3, 2, sharey=True, sharex="col")
        for column, panel in enumerate(PANELS):
            formulas, independent, correlated = (rows[row][column] for row in range(3))
            _draw_formulas(formulas, data, panel)
            _draw_simulated(independent, data, panel, ((REGULAR, "-"), (POISSON, "--")))
            _draw_correlated(correlated, data, panel)
            for axes, title in (
                (formulas, f"{panel[-1]}  the formula"),
                (independent, "simulated: software"),
                (correlated, "simulated: hardware"),
            ):
                axes.set_title(title)
                axes.set_ylim(0, 1.02)
                axes.grid(visible=True)
        for axes in rows[:, 0]:
            axes.set_ylabel("Effective ratio")
            axes.set_xticks(RATES_PER_DAY)
        rows[2][0].set_xlabel("Failures a day")
        rows[2][1].set_xlabel("Machines (1.5 % fail a day)")
        rows[2][1].set_xticks([200, 400, 600, 800, 1000])
        _legend(rows[0][0])
        handles, labels = rows[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2, columnspacing=1.0)


def _legend(axes: Axes) -> None:
    """Add to the axes, out of sight, one entry for each kind of line."""
    for scheme in SCHEMES:
        colour, mark = _STYLES[scheme]
        axes.plot([], [], color=colour, marker=mark, mfc="white", label=f"{scheme}; mark: paper")
    axes.plot([], [], ":", color=GREY, label="the formula again")
    axes.plot([], [], "-", color=BLACK, label="a failure in each slot of 1/F")
    axes.plot([], [], "--", color=BLACK, label="independent failures")
    axes.plot([], [], "-.", color=BLACK, label="half in racks of 4 at once")
    colour, mark = _AWARE_STYLE
    label = "Gemini, replicas across racks"
    axes.plot([], [], "-.", color=colour, marker=mark, markersize=2.5, label=label)


def _draw_formulas(axes: Axes, data: FigureData, panel: str) -> None:
    for scheme in SCHEMES:
        colour, mark = _STYLES[scheme]
        rows = data.of(panel, f"{scheme}, {PUBLISHED_FORMULA}")
        axes.plot(xs(rows), ours(rows), color=colour)
        axes.plot(*marks(rows), mark, mfc="white", mec=colour, clip_on=False)


def _draw_simulated(
    axes: Axes, data: FigureData, panel: str, kinds: tuple[tuple[str, str], ...]
) -> None:
    for scheme in SCHEMES:
        formula = data.of(panel, f"{scheme}, {PUBLISHED_FORMULA}")
        axes.plot(xs(formula), ours(formula), ":", color=GREY)
        for kind, dash in kinds:
            _draw_band(axes, data, panel, f"{scheme}, {kind}", _STYLES[scheme], dash)


def _draw_correlated(axes: Axes, data: FigureData, panel: str) -> None:
    for scheme in SCHEMES:
        style = _STYLES[scheme]
        _draw_band(axes, data, panel, f"{scheme}, {INDEPENDENT_HARDWARE}", style, "--")
        _draw_band(axes, data, panel, f"{scheme}, {CORRELATED}", style, "-.")
    _draw_band(axes, data, panel, f"Gemini, {CORRELATED_AWARE}", _AWARE_STYLE, "-.")


def _draw_band(
    axes: Axes, data: FigureData, panel: str, series: str, style: tuple[str, str], dash: str
) -> None:
    colour, mark = style
    rows = data.of(panel, series)
    axes.plot(xs(rows), ours(rows), dash, color=colour, marker=mark, markersize=2.5)
    low, high = ([row.band[end] for row in rows] for end in (0, 1))
    axes.fill_between(xs(rows), low, high, color=colour, alpha=0.25, linewidth=0.0)
