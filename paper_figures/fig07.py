"""Fig. 7: iteration time with and without Gemini, 100B models on 16 p4d machines."""

from __future__ import annotations

from pathlib import Path

from paper_figures.calibration import ITERATION
from paper_figures.figure_data import Effort, FigureData
from paper_figures.iteration_bars import GEMINI, draw_figure, iteration_rows

FIGURE = "fig07"


def compute(effort: Effort) -> FigureData:
    """Return the simulated times; nothing in them is random, so `effort` makes no difference."""
    effort.progress(f"{FIGURE}: one iteration of each model")
    return FigureData(tuple(iteration_rows(FIGURE, "p4d")))


def draw(data: FigureData, path_stem: str | Path) -> None:
    """Draw the bars with the paper's marks; writes PNG and PDF."""
    draw_figure(data, path_stem, FIGURE, (ITERATION, GEMINI), "Iteration (s)")
