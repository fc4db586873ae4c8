"""Fig. 12: checkpoints an hour, GPT-2 100B on 16 p4d machines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from castor_sim.run import run_once
from castor_traces.picture_style import BLACK, BLUE, VERMILION, picture
from paper_figures.figure_data import Effort, FigureData, Row
from paper_figures.paper_job import (
    HIGHFREQ_SAVE_S,
    STRAWMAN_INTERVAL_S,
    PaperJob,
    paper_job,
    setup_of,
)
from paper_figures.published import published_values

FIGURE = "fig12"
HOUR_S = 3600.0
DEFINED = "By definition"
SIMULATED = "Simulated"
_SHIFT = 0.22  # rows of marks apart, so that equal values do not hide each other
POINTS = ("Gemini", "Gemini to storage", "HighFreq", "Strawman")
_NOTES = {
    "HighFreq": "6.85 an hour is one in 525 s. The definition gives 8 iterations of 62 s (7.26 an "
    "hour), the text's 9 iterations give 6.45, and with 81 s of torch.save in each period "
    "6.24 and 5.63: no reading of the text gives 6.85",
}


def compute(effort: Effort) -> FigureData:
    """Return checkpoints an hour by each scheme's definition, and in a run without failures."""
    effort.progress(f"{FIGURE}: a run without failures")
    return FigureData((*_defined(paper_job()), *_simulated()))


def _defined(job: PaperJob) -> Iterator[Row]:
    published = published_values(FIGURE)
    period_s = {
        "Gemini": job.iteration_s,
        "Gemini to storage": STRAWMAN_INTERVAL_S,
        "HighFreq": job.highfreq_iterations * job.iteration_s,
        "Strawman": STRAWMAN_INTERVAL_S,
    }
    for point in POINTS:
        yield Row(
            figure=FIGURE,
            series=DEFINED,
            point=point,
            ours=HOUR_S / period_s[point],
            unit="1/h",
            paper=published[("Checkpoints", point)].value,
            note=_NOTES.get(point, ""),
        )
    for iterations, save_s, reading in (
        (9, 0.0, "9 iterations"),
        (8, HIGHFREQ_SAVE_S, "8 iterations and 81 s of torch.save"),
        (9, HIGHFREQ_SAVE_S, "9 iterations and 81 s of torch.save"),
    ):
        yield Row(
            figure=FIGURE,
            series=f"HighFreq, {reading}",
            point="HighFreq",
            ours=HOUR_S / (iterations * job.iteration_s + save_s),
            unit="1/h",
            paper=published[("Checkpoints", "HighFreq")].value,
        )


def _simulated() -> Iterator[Row]:
    """Count checkpoints in 30 days without a failure; nothing in it is random."""
    setup = setup_of(
        {"training.iteration": '"62s"', "failures.per_day": "0.0", "duration": '"30d"'}
    )
    published = published_values(FIGURE)
    for point in POINTS:
        name = point.split()[0].lower()
        profile = setup.costs[name]
        tally = run_once(setup, name, seed=1)
        every = profile.memory_every if point == "Gemini" else profile.storage_every
        yield Row(
            figure=FIGURE,
            series=SIMULATED,
            point=point,
            ours=tally.iterations // every / (tally.wall_ns / 1e9 / HOUR_S),
            unit="1/h",
            paper=published[("Checkpoints", point)].value,
        )


def draw(data: FigureData, path_stem: str | Path) -> None:
    """Draw a line of marks for each scheme on a logarithmic axis; writes PNG and PDF."""
    with picture(path_stem, 2.2) as figure:
        axes = figure.subplots()
        height = {point: len(POINTS) - 1 - i for i, point in enumerate(POINTS)}
        defined, simulated = data.of(FIGURE, DEFINED), data.of(FIGURE, SIMULATED)
        for rows, shift, mark, colour, label in (
            (defined, _SHIFT, "o", BLUE, "ours, by definition"),
            (simulated, -_SHIFT, "s", VERMILION, "ours, simulated"),
        ):
            axes.plot(
                [row.ours for row in rows], [height[row.point] + shift for row in rows],
                mark, color=colour, label=label,
            )  # fmt: skip
        axes.plot(
            [row.paper or 0.0 for row in defined], [height[row.point] for row in defined],
            "D", mfc="none", mec=BLACK, markersize=5, label="paper",
        )  # fmt: skip
        for row in defined:
            axes.annotate(
                f"{row.ours:.3g}", (row.ours, height[row.point] + _SHIFT), xytext=(7, 0),
                textcoords="offset points", va="center", fontsize=7,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlim(0.2, 140)
        axes.set_xticks([0.3, 1, 3, 10, 30, 100], ["0.3", "1", "3", "10", "30", "100"])
        axes.set_xticks([], minor=True)
        axes.set_ylim(-0.5, len(POINTS) - 0.5)
        axes.set_yticks(
            list(height.values()),
            ["Gemini,\nto memory", "Gemini,\nto storage", "HighFreq", "Strawman"],
        )
        axes.set_xlabel("Checkpoints an hour")
        axes.grid(visible=True, axis="x")
        figure.legend(loc="outside upper center", ncols=3, columnspacing=1.0)
