"""Draw a sweep over one or two parameters: the effective training time ratio as lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from castor_analysis.sweep.run import Axis, SweepResult
from castor_analysis.sweep.tables import ratios, strategy_names, varying
from castor_configs.quantities import (
    parse_bps,
    parse_bytes,
    parse_fraction,
    parse_rate_per_s,
    parse_seconds,
)
from castor_traces import picture_style
from castor_traces.picture_style import picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = (
    picture_style.BLUE,
    picture_style.VERMILION,
    picture_style.GREEN,
    picture_style.ORANGE,
    picture_style.PURPLE,
    picture_style.SKY_BLUE,
    picture_style.BLACK,
    picture_style.GREY,
)
_MARKERS = "os^DvPX*"
_DASHES = ("-", "--", "-.", ":")
_LOG_FROM = 12.0
"""A scale on which the largest value is so many times the smallest reads better as a logarithm."""
_MOST_TICKS = 8
_MOST_LABEL = 9
_PANEL_IN = 1.5

Line = tuple[str, list[tuple[float, float, float, float]]]


def draw_sweep(result: SweepResult, path_stem: Path) -> bool:
    """Draw the sweep as PNG and PDF if one or two parameters vary; say whether it was drawn.

    One parameter: a line for each strategy. Two: a panel for each strategy, the longer axis along
    it and a line for each value of the other. Bands are 95 % intervals.

    Raises:
        OSError: a file cannot be written.
    """
    axes = varying(result.sweep)
    if not 1 <= len(axes) <= 2:
        return False
    along = max(axes, key=lambda place: (len(result.sweep.axes[place].values), -place))
    axis = result.sweep.axes[along]
    positions, logarithmic = positions_of(axis.values)
    names = strategy_names(result)
    if len(axes) == 1:
        lines = [(name, _line(result, name, along, positions, None)) for name in names]
        panels: list[tuple[str, list[Line]]] = [("", lines)]
        legend = "strategy"
    else:
        other = next(place for place in axes if place != along)
        legend = result.sweep.axes[other].key
        panels = [(name, _lines_over(result, name, along, other, positions)) for name in names]
    with picture(path_stem, 0.9 + _PANEL_IN * len(panels)) as figure:
        grid = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for panel, (title, lines) in zip(grid, panels, strict=True):
            _draw(panel, lines)
            if title:
                panel.set_title(title)
            panel.grid(visible=True)
        _scale(grid[-1], axis, positions, logarithmic)
        figure.supylabel("effective training time ratio", fontsize=7.5)
        handles, labels = grid[0].get_legend_handles_labels()
        if len(labels) > 1:
            figure.legend(
                handles, labels, title=legend, loc="outside upper center", ncols=min(3, len(labels))
            )
    return True


def positions_of(values: Sequence[str]) -> tuple[list[float], bool]:
    """Return where the values stand on an axis, and whether it is logarithmic.

    Numbers, times, rates, shares, sizes and bandwidths stand where their value is; anything else
    stands in order, one step apart.
    """
    parsers: tuple[Callable[[object], float], ...] = (
        float,  # type: ignore[assignment]  # of a text, which is all that it gets here
        parse_seconds,
        parse_rate_per_s,
        parse_fraction,
        parse_bytes,
        parse_bps,
    )
    for parser in parsers:
        try:
            found = [float(parser(value.strip("\"'"))) for value in values]
        except ValueError:
            continue
        if all(map(math.isfinite, found)) and len(set(found)) == len(found):
            low, high = min(found), max(found)
            return found, low > 0 and high / low >= _LOG_FROM
    return [float(place) for place in range(len(values))], False


def _lines_over(
    result: SweepResult, strategy: str, along: int, other: int, positions: Sequence[float]
) -> list[Line]:
    return [
        (value, _line(result, strategy, along, positions, (other, value)))
        for value in result.sweep.axes[other].values
    ]


def _line(
    result: SweepResult,
    strategy: str,
    along: int,
    positions: Sequence[float],
    only: tuple[int, str] | None,
) -> list[tuple[float, float, float, float]]:
    """Return (position, mean, low, high) in ascending order of position."""
    values = result.sweep.axes[along].values
    position_of = dict(zip(values, positions, strict=True))
    found = []
    for point, ratio in zip(result.sweep.points, ratios(result, strategy), strict=True):
        if ratio is None or (only is not None and point.settings[only[0]][1] != only[1]):
            continue
        place = position_of[point.settings[along][1]]
        mean = ratio["mean"]
        low, high = ratio["ci95_low"], ratio["ci95_high"]  # null for a single replication
        found.append((place, mean, mean if low is None else low, mean if high is None else high))
    return sorted(found)


def _draw(panel: Axes, lines: Sequence[Line]) -> None:
    for number, (label, found) in enumerate(lines):
        if not found:
            continue
        places, means, lows, highs = zip(*found, strict=True)
        style: dict[str, Any] = {
            "color": _COLOURS[number % len(_COLOURS)],
            "marker": _MARKERS[number % len(_MARKERS)],
            "linestyle": _DASHES[number // len(_COLOURS) % len(_DASHES)],
        }
        panel.plot(places, means, label=label, **style)
        panel.fill_between(places, lows, highs, color=style["color"], alpha=0.2, linewidth=0)


def _scale(panel: Axes, axis: Axis, positions: Sequence[float], logarithmic: bool) -> None:
    if logarithmic:
        panel.set_xscale("log")
        panel.minorticks_off()
    panel.set_xlabel(axis.key)
    labels = [value.strip("\"'") for value in axis.values]
    step = -(-len(labels) // _MOST_TICKS)
    shown = sorted(zip(positions, labels, strict=True))[::step]
    slanted = max(len(label) for _, label in shown) * len(shown) > _MOST_LABEL * 5
    panel.set_xticks(
        [place for place, _ in shown],
        [label for _, label in shown],
        rotation=30 if slanted else 0,
        ha="right" if slanted else "center",
    )
