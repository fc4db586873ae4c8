"""Fig. 8: idle time of the network and the checkpoint in it, 100B models on 16 p4d machines."""

from __future__ import annotations

from pathlib import Path

from castor_traces.picture_style import picture
from paper_figures.calibration import CHECKPOINT, IDLE
from paper_figures.figure_data import Effort, FigureData
from paper_figures.iteration_bars import draw_bars, idle_rows

FIGURE = "fig08"


def compute(effort: Effort) -> FigureData:
    """Return the simulated times; nothing in them is random, so `effort` makes no difference."""
    effort.progress(f"{FIGURE}: one iteration of each model")
    return FigureData(tuple(idle_rows(FIGURE, "p4d")))


def draw(data: FigureData, path_stem: str | Path) -> None:
    """Draw the bars with the paper's marks; writes PNG and PDF."""
    with picture(path_stem, 2.3) as figure:
        axes = figure.subplots()
        draw_bars(axes, data, FIGURE, (IDLE, CHECKPOINT), "Time in an iteration (s)")
        figure.legend(loc="outside upper center", ncols=3, columnspacing=1.0)
