"""What Fig. 7, 8 and 13 share: simulated iterations as rows, and bars with the paper's marks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from castor_configs.cluster import load_cluster
from castor_configs.model import load_model
from castor_sim.iteration.run import IterationReport
from castor_traces.picture_style import BLACK, BLUE, GREEN, SKY_BLUE, VERMILION, picture
from paper_figures.calibration import CHECKPOINT, FITTED_ON, IDLE, ITERATION, MODELS, simulate
from paper_figures.figure_data import FigureData, Row
from paper_figures.published import published_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GEMINI: Final = "Gemini"
COST: Final = "Added by Gemini"

_NOTES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "p3dn": "One calibration for all models of p3dn, fitted to GPT-2 20B and 40B; 40B models "
        "differ in shape by 0.1 %, the paper's iterations by 5 %",
        "p4d": "One calibration for all models of p4d, fitted to GPT-2 100B; the three shapes "
        "differ by 0.2 %, the paper's iterations by 22 %, for which it gives no reason",
    }
)
_COLOURS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        ITERATION: (SKY_BLUE, ""),
        GEMINI: (BLUE, "////"),
        IDLE: (GREEN, ""),
        CHECKPOINT: (VERMILION, "////"),
    }
)


@cache
def report_of(cluster: str, model: str) -> IterationReport:
    """Return a model's iteration on a shipped cluster without checkpoints and with Gemini's."""
    return simulate(load_cluster(cluster), load_model(model), ("pipelined",))


def iteration_rows(figure: str, cluster: str) -> Iterable[Row]:
    """Yield iteration times without and with Gemini, and what Gemini adds."""
    published = published_values(figure)
    reports = [(load_model(name).name, report_of(cluster, name)) for name in MODELS[cluster]]
    for series in (ITERATION, GEMINI):
        for point, report in reports:
            result = report.baseline if series == ITERATION else report.results["pipelined"]
            yield Row(
                figure=figure,
                series=series,
                point=point,
                ours=result.iteration_ns / 1e9,
                unit="s",
                paper=published[series, point].value,
                note=_NOTES[cluster],
            )
    for point, report in reports:
        paper = published[GEMINI, point].value - published[ITERATION, point].value
        yield Row(
            figure=figure,
            series=COST,
            point=point,
            ours=100.0 * report.overhead("pipelined"),
            unit="%",
            paper=100.0 * paper / published[ITERATION, point].value,
            note="The paper's bars differ by 0.1 to 0.3 s, which is within their error bars",
        )


def idle_rows(figure: str, cluster: str) -> Iterable[Row]:
    """Yield the network's idle time without checkpoints, and the checkpoint's time in it."""
    published = published_values(figure)
    for series in (IDLE, CHECKPOINT):
        for name in MODELS[cluster]:
            report = report_of(cluster, name)
            ours_ns = report.baseline.idle_ns
            if series == CHECKPOINT:
                ours_ns = report.results["pipelined"].checkpoint_ns
            point = load_model(name).name
            fitted = name in FITTED_ON[cluster]
            yield Row(
                figure=figure,
                series=series,
                point=point,
                ours=ours_ns / 1e9,
                unit="s",
                paper=published[series, point].value,
                note="" if fitted else "Held out of the fit",
            )


def draw_figure(
    data: FigureData, path_stem: str | Path, figure: str, series: Sequence[str], label: str
) -> None:
    """Draw one panel of bars with the paper's marks; writes PNG and PDF."""
    with picture(path_stem, 2.3) as drawing:
        draw_bars(drawing.subplots(), data, figure, series, label)
        drawing.legend(loc="outside upper center", ncols=3, columnspacing=1.0)


def draw_bars(axes: Axes, data: FigureData, figure: str, series: Sequence[str], label: str) -> None:
    """Draw ours as bars, side by side for each point, and the paper's values as diamonds."""
    points = [row.point for row in data.of(figure, series[0])]
    width = 0.8 / len(series)
    for number, name in enumerate(series):
        rows = data.of(figure, name)
        places = [index + (number - (len(series) - 1) / 2) * width for index in range(len(rows))]
        colour, hatch = _COLOURS[name]
        axes.bar(
            places, [row.ours for row in rows], width * 0.92, color=colour, hatch=hatch,
            edgecolor="white", linewidth=0.0, label="Idle before" if name == IDLE else name,
        )  # fmt: skip
        axes.plot(
            places, [row.paper or 0.0 for row in rows], "D", mfc="white", mec=BLACK, markersize=4,
            label="paper" if number == 0 else None,
        )  # fmt: skip
    axes.set_xticks(range(len(points)), [point.replace(" ", "\n") for point in points])
    axes.set_ylim(bottom=0)
    axes.set_ylabel(label)
    axes.grid(visible=True, axis="y")
