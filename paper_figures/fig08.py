"""Fig. 8: idle time of the network and the checkpoint in it, 100B models on 16 p4d machines."""

from __future__ import annotations

from pathlib import Path

from paper_figures.calibration import CHECKPOINT, IDLE
from paper_figures.figure_data import Effort, FigureData
from paper_figures.iteration_bars import draw_figure, idle_rows

FIGURE = "fig08"


def compute(effort: Effort) -> FigureData:
    """Return the simulated times; nothing in them is random, so `effort` makes no difference."""
    effort.progress(f"{FIGURE}: one iteration of each model")
    return FigureData(tuple(idle_rows(FIGURE, "p4d")))


def draw(data: FigureData, path_stem: str | Path) -> None:
    """Draw the bars with the paper's marks; writes PNG and PDF."""
    draw_figure(data, path_stem, FIGURE, (IDLE, CHECKPOINT), "Time in an iteration (s)")
