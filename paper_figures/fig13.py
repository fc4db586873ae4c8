"""Fig. 13: iteration, idle and checkpoint time of models of 10B to 40B on 16 p3dn machines."""

from __future__ import annotations

from pathlib import Path

from castor_traces.picture_style import picture
from paper_figures.calibration import CHECKPOINT, IDLE, ITERATION
from paper_figures.figure_data import Effort, FigureData
from paper_figures.iteration_bars import GEMINI, draw_bars, idle_rows, iteration_rows

FIGURE = "fig13"


def compute(effort: Effort) -> FigureData:
    """Return the simulated times; nothing in them is random, so `effort` makes no difference."""
    effort.progress(f"{FIGURE}: one iteration of each model")
    return FigureData((*iteration_rows(FIGURE, "p3dn"), *idle_rows(FIGURE, "p3dn")))


def draw(data: FigureData, path_stem: str | Path) -> None:
    """Draw both panels with the paper's marks; writes PNG and PDF."""
    with picture(path_stem, 3.9) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        draw_bars(upper, data, FIGURE, (ITERATION, GEMINI), "Iteration (s)")
        draw_bars(lower, data, FIGURE, (IDLE, CHECKPOINT), "Time in an iteration (s)")
        for axes in (upper, lower):
            axes.set_ylim(top=1.2 * axes.get_ylim()[1])
            axes.legend(loc="upper left", ncols=3, fontsize=6, columnspacing=1.0)
