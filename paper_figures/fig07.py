"""Fig. 7: iteration time with and without Gemini, 100B models on 16 p4d machines."""

from __future__ import annotations

from pathlib import Path

from castor_traces.picture_style import picture
from paper_figures.calibration import ITERATION
from paper_figures.figure_data import Effort, FigureData
from paper_figures.iteration_bars import GEMINI, draw_bars, iteration_rows

FIGURE = "fig07"


def compute(effort: Effort) -> FigureData:
    """Return the simulated times; nothing in them is random, so `effort` makes no difference."""
    effort.progress(f"{FIGURE}: one iteration of each model")
    return FigureData(tuple(iteration_rows(FIGURE, "p4d")))


def draw(data: FigureData, path_stem: str | Path) -> None:
    """Draw the bars with the paper's marks; writes PNG and PDF."""
    with picture(path_stem, 2.3) as figure:
        axes = figure.subplots()
        draw_bars(axes, data, FIGURE, (ITERATION, GEMINI), "Iteration (s)")
        figure.legend(loc="outside upper center", ncols=3, columnspacing=1.0)
