"""Fig. 11: by what factor memory checkpoints are faster than 20 Gbps of shared storage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from castor_policy.published import checkpoint_time_reduction
from castor_traces.picture_style import BLACK, BLUE, GREEN, VERMILION, picture
from paper_figures.figure_data import Effort, FigureData, Row, marks, ours, xs
from paper_figures.published import published_values

FIGURE = "fig11"
NETWORKS_GBPS = (100, 200, 400)
MACHINES = (4, 8, 12, 16)
_NOTES = {
    (100, 16): "the text says 65x; its formula gives 68",
    (400, 16): "the text's >250x is this formula, at 340 Gbps a machine. With the 2.5 s that "
    "Fig. 8 plots it is 480/2.5 = 192x",
}


def compute(_effort: Effort) -> FigureData:
    """Return the formula's values: it is no measurement, in the paper neither."""
    return FigureData(tuple(_rows()))


def _rows() -> Iterator[Row]:
    published = published_values(FIGURE)
    for gbps in NETWORKS_GBPS:
        series = f"{gbps} Gbps"
        for machines in MACHINES:
            yield Row(
                figure=FIGURE,
                series=series,
                point=str(machines),
                ours=checkpoint_time_reduction(machines, gbps * 1e9),
                unit="x",
                paper=published[(series, str(machines))].value,
                note=_NOTES.get((gbps, machines), ""),
            )


def draw(data: FigureData, path_stem: str | Path) -> None:
    """Draw a line for each network, with the paper's values as hollow marks; writes PNG and PDF."""
    with picture(path_stem, 2.3) as figure:
        axes = figure.subplots()
        styles = zip(NETWORKS_GBPS, (GREEN, VERMILION, BLUE), "^so", strict=True)
        for gbps, colour, mark in styles:
            rows = data.of(FIGURE, f"{gbps} Gbps")
            axes.plot(xs(rows), ours(rows), color=colour)
            axes.plot(*marks(rows), mark, mfc="white", mec=colour, mew=1.0, clip_on=False)
            axes.annotate(
                f"{gbps} Gbps", (16, rows[-1].ours), xytext=(6, 0), textcoords="offset points",
                va="center", color=colour, annotation_clip=False,
            )  # fmt: skip
        axes.plot([], [], color=BLACK, label="ours (the paper's formula)")
        axes.plot([], [], "o", mfc="white", mec=BLACK, label="paper")
        axes.set_xlabel("Machines")
        axes.set_ylabel("Checkpoint time, reduction (x)")
        axes.set_xlim(3, 20)
        axes.set_xticks(MACHINES)
        axes.set_ylim(0, 290)
        axes.grid(visible=True)
        axes.legend(loc="upper left")
