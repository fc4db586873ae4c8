"""Fig. 16: the iteration under each way to interleave, GPT-2 40B on 16 p3dn machines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from castor_policy.interleaving import NONE
from castor_sim.iteration.case import load_iteration
from castor_sim.iteration.run import SCHEME_NAMES, IterationReport, simulate_iteration
from castor_traces.picture_style import BLACK, GREY, SKY_BLUE, VERMILION, picture
from paper_figures.figure_data import Effort, FigureData, Row
from paper_figures.published import published_values

FIGURE = "fig16"
EXPERIMENT = "gpt2-40b-p3dn"
ITERATION = "Iteration"
OVERHEAD = "Overhead"
BUFFER = "GPU memory for chunks"
LARGEST = "Largest idle span"
_LABELS = {
    NONE: "Baseline",
    "blocking": "Blocking",
    "naive": "Naive\ninterleave",
    "unpipelined": "Without\npipeline",
    "pipelined": "Gemini",
}
_NOTES = {
    ITERATION: "Fig. 13 shows 45.4 s for the same iteration, on which the simulator was fitted",
    "unpipelined": "The copies' speed was fitted to this bar",
    "naive": "More than the 512 MB taken to be free; the paper's run ended out of memory as well",
    LARGEST: "The time of the gradient check was fitted to this",
}


def compute(effort: Effort) -> FigureData:
    """Return the simulated schemes; nothing in them is random: `effort` makes no difference."""
    effort.progress(f"{FIGURE}: one iteration of each scheme")
    return FigureData(tuple(_rows(simulate_iteration(load_iteration(EXPERIMENT).case))))


def _rows(report: IterationReport) -> Iterator[Row]:
    published = {key: found.value for key, found in published_values(FIGURE).items()}
    ran = [name for name in SCHEME_NAMES if not report.results[name].out_of_memory]
    for name in ran:
        ours_s = report.results[name].iteration_ns / 1e9
        yield Row(FIGURE, ITERATION, name, ours_s, "s", published.get((ITERATION, name)),
                  _NOTES[ITERATION])  # fmt: skip
    base_s = published[ITERATION, NONE]
    for name in ran[1:]:
        plotted = 100.0 * (published[ITERATION, name] / base_s - 1.0)
        yield Row(
            figure=FIGURE,
            series=OVERHEAD,
            point=name,
            ours=100.0 * report.overhead(name),
            unit="%",
            paper=published.get((OVERHEAD, name), plotted),
            note=_NOTES.get(name, ""),
        )
    for name in SCHEME_NAMES[1:]:
        buffer_mb = report.results[name].peak_buffer_bytes / 1e6
        yield Row(FIGURE, BUFFER, name, buffer_mb, "MB", note=_NOTES["naive"])
    largest_s = max(span.idle_ns for span in report.spans[0]) / 1e9
    yield Row(FIGURE, LARGEST, NONE, largest_s, "s", published[LARGEST, NONE], _NOTES[LARGEST])


def draw(data: FigureData, path_stem: str | Path) -> None:
    """Draw a bar for each scheme with the paper's marks; writes PNG and PDF."""
    rows = data.of(FIGURE, ITERATION)
    places = {name: index for index, name in enumerate(_LABELS)}
    with picture(path_stem, 2.4) as figure:
        axes = figure.subplots()
        axes.bar(
            [places[row.point] for row in rows], [row.ours for row in rows], 0.6,
            color=[VERMILION if row.point == "pipelined" else SKY_BLUE for row in rows],
            label="simulated",
        )  # fmt: skip
        axes.plot(
            [places[row.point] for row in rows], [row.paper or 0.0 for row in rows], "D",
            mfc="white", mec=BLACK, markersize=4.5, label="paper",
        )  # fmt: skip
        for row in data.of(FIGURE, OVERHEAD):
            top = data.at(FIGURE, ITERATION, row.point).ours
            axes.annotate(
                f"{row.ours:+z.1f} %\n(paper {row.paper or 0.0:+z.1f} %)",
                (places[row.point], top), xytext=(0, 3), textcoords="offset points", ha="center",
                fontsize=6,
            )  # fmt: skip
        if "naive" not in {row.point for row in rows}:
            axes.text(places["naive"], 41, "out of\nmemory", ha="center", color=GREY, fontsize=7)
        axes.set_xticks(list(places.values()), list(_LABELS.values()))
        axes.set_xlim(-0.6, len(places) - 0.4)
        axes.set_ylim(40, 53)
        axes.set_ylabel("Iteration (s), from 40 s")
        axes.grid(visible=True, axis="y")
        axes.legend(loc="upper right", ncols=2, fontsize=6.5)
