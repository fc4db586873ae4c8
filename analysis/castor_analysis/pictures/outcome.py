"""Pictures of a result: strategies set side by side, and what happened in one run over time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from castor_analysis.timeline import (
    LOST_PROGRESS,
    PHASES,
    TRAINING,
    Timeline,
    read_timeline,
)
from castor_records.events.event import Entry, Event
from castor_records.events.failures import Failed
from castor_records.outages import Outage
from castor_sim.tally import WASTE_KINDS
from castor_traces import picture_style
from castor_traces.picture_style import picture, picture_paths

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NS_PER_S: Final = 1e9

#: Colour and hatch of every part of the time; hatches tell neighbours apart in grey.
_LOOK: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "slow": (picture_style.GREEN, "...."),
        LOST_PROGRESS: (picture_style.VERMILION, ""),
        "checkpoint_stall": (picture_style.GREY, "////"),
        "detection": (picture_style.YELLOW, ""),
        "serialisation": (picture_style.ORANGE, "\\\\\\\\"),
        "replacement_wait": (picture_style.PURPLE, "...."),
        "retrieval": (picture_style.BLUE, ""),
        "warm_up": (picture_style.SKY_BLUE, "////"),
    }
)
_LABELS: Final[Mapping[str, str]] = MappingProxyType({"warm_up": "warm-up"})
_MARKS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {"hardware": (picture_style.BLACK, "v"), "software": (picture_style.GREEN, "x")}
)
_UNITS: Final = ((86_400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
_BINS: Final = 80
_ZOOMED: Final = 6
"""Recoveries in the close-up."""


def draw_comparison(document: Mapping[str, Any], path_stem: str | Path) -> tuple[Path, Path]:
    """Draw the strategies of a result: effective ratio with its interval, wasted time by part.

    Args:
        document: what result.json holds (`castor_analysis.result_folder.result_document`).
        path_stem: where to write; ".png" and ".pdf" are appended to the name.

    Returns:
        The paths of the PNG and the PDF.

    Raises:
        OSError: a file cannot be written.
        ValueError: the document holds no strategy.
    """
    strategies: Mapping[str, Mapping[str, Any]] = document["strategies"]
    if not strategies:
        raise ValueError("the result holds no strategy; run `castor simulate` with at least one")
    row_in = 0.17 * len(strategies)
    with picture(path_stem, 1.9 + 2 * row_in) as figure:
        ratio, wasted = figure.subplots(
            2, 1, sharey=True, gridspec_kw={"height_ratios": [row_in + 0.3, row_in + 0.3]}
        )
        job = document["job"]
        figure.suptitle(
            f"{document['name']}\n{job['machines']:,} machines, "
            f"{job['interruptions_per_day']:.3g} interruptions a day",
            fontsize=8.5,
        )
        _draw_ratios(ratio, strategies)
        _draw_parts(wasted, strategies)
        ratio.invert_yaxis()  # shared: the first strategy on top in both
        _legend(figure, [part for part in WASTE_KINDS if _is_wasted(strategies, part)])
    return picture_paths(path_stem)


def _draw_ratios(axes: Axes, strategies: Mapping[str, Mapping[str, Any]]) -> None:
    axes.set_title("Effective training time ratio (mean, 95 % interval)")
    figures = [summary["effective_training_time_ratio"] for summary in strategies.values()]
    means = np.array([figure["mean"] for figure in figures])
    # A single replication has no interval: its bar gets none.
    low = np.array([_end(figure, "ci95_low") for figure in figures])
    high = np.array([_end(figure, "ci95_high") for figure in figures])
    rows = np.arange(len(figures))
    axes.barh(rows, means, height=0.6, color=picture_style.SKY_BLUE)
    axes.errorbar(
        means, rows, xerr=[means - low, high - means], fmt="none",
        ecolor=picture_style.BLACK, elinewidth=0.9, capsize=2.0,
    )  # fmt: skip
    for row, mean, end in zip(rows, means, high, strict=True):
        axes.text(max(mean, end) + 0.015, float(row), f"{mean:.3f}", va="center", fontsize=6.5)
    axes.set_yticks(rows, list(strategies))
    axes.set_xlim(0, 1.15)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    axes.grid(visible=True, axis="x")


def _draw_parts(axes: Axes, strategies: Mapping[str, Mapping[str, Any]]) -> None:
    axes.set_title("Wasted time (share of wall time)")
    rows = np.arange(len(strategies))
    left = np.zeros(len(strategies))
    for part in WASTE_KINDS:
        share = np.array(
            [s["wasted_time_s"][part] / (s["wall_time_s"] or 1.0) for s in strategies.values()]
        )
        colour, hatch = _LOOK[part]
        axes.barh(
            rows, share, left=left, height=0.6, color=colour, hatch=hatch,
            edgecolor="white", linewidth=0.0,
        )  # fmt: skip
        left += share
    axes.set_xlim(0, max(1e-9, float(left.max())) * 1.05)
    axes.xaxis.set_major_formatter(lambda value, _place: f"{100 * value:.3g} %")
    axes.grid(visible=True, axis="x")


def _is_wasted(strategies: Mapping[str, Mapping[str, Any]], part: str) -> bool:
    return any(summary["wasted_time_s"][part] > 0 for summary in strategies.values())


def draw_timeline(
    entries: Iterable[Entry[Event]], title: str, path_stem: str | Path
) -> tuple[Path, Path]:
    """Draw one run: iterations and failures over time, where time was wasted, and a close-up.

    The close-up sets the first recoveries one below the other, each from its failure on, so that
    phases of seconds are seen also where the run lasted a year.

    Args:
        entries: the event log of one run, in order of time.
        title: of the picture.
        path_stem: where to write; ".png" and ".pdf" are appended to the name.

    Returns:
        The paths of the PNG and the PDF.

    Raises:
        OSError: a file cannot be written.
    """
    timeline = read_timeline(entries)
    zoomed = timeline.outages[:_ZOOMED]
    with picture(path_stem, 3.6 + 0.2 * len(zoomed)) as figure:
        heights = [1.3, 0.9, 0.35 + 0.2 * len(zoomed)]
        done, wasted, close = figure.subplots(3, 1, gridspec_kw={"height_ratios": heights})
        figure.suptitle(title, fontsize=8.5)
        unit_s, unit = _unit_of(timeline.end_ns / NS_PER_S)
        for axes in (done, wasted):
            axes.set_xlim(0, max(timeline.end_ns / NS_PER_S / unit_s, 1e-9))
        wasted.sharex(done)
        done.tick_params(labelbottom=False)
        wasted.set_xlabel(f"Time ({unit})")
        _draw_iterations(done, timeline, unit_s)
        _draw_wasted(wasted, timeline, unit_s)
        _draw_close_up(close, zoomed)
        present = {span.phase for span in timeline.spans}
        _legend(figure, [phase for phase in PHASES if phase in present - {TRAINING}])
    return picture_paths(path_stem)


def _draw_iterations(axes: Axes, timeline: Timeline, unit_s: float) -> None:
    axes.set_title("Iterations done, and failures")
    axes.set_ylabel("Iterations")
    time = np.array([time_ns for time_ns, _ in timeline.iterations]) / NS_PER_S / unit_s
    iterations = np.array([iteration for _, iteration in timeline.iterations])
    many = len(timeline.failures) > 2000
    if timeline.iteration_ns is not None:
        ideal = timeline.end_ns / timeline.iteration_ns
        axes.plot(
            [0, timeline.end_ns / NS_PER_S / unit_s], [0, ideal], color=picture_style.GREY,
            linestyle="--", linewidth=0.8, label="without failures",
        )  # fmt: skip
    axes.plot(time, iterations, color=picture_style.BLUE, linewidth=1.0, rasterized=many)
    size = 14.0 if len(timeline.failures) <= 200 else 5.0
    for kind, failures in sorted(_by_kind(timeline.failures).items()):
        colour, marker = _MARKS.get(kind, (picture_style.BLACK, "|"))
        # Just below the top: in the line's way nowhere but at the end.
        height = 0.95 if kind == "hardware" else 0.87
        axes.scatter(
            np.array([failure.time_ns for failure in failures]) / NS_PER_S / unit_s,
            np.full(len(failures), height), transform=axes.get_xaxis_transform(),
            s=size, c=colour, marker=marker, linewidths=0.6, rasterized=many,
            label=f"{kind} failure ({len(failures):,})",
        )  # fmt: skip
    axes.set_ylim(0, axes.get_ylim()[1] * 1.4)
    axes.yaxis.set_major_formatter(lambda value, _place: f"{value:,.0f}")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="upper left", bbox_to_anchor=(0.0, 0.83), borderaxespad=0.2, handletextpad=0.4
        )


def _by_kind(failures: Sequence[Entry[Failed]]) -> dict[str, list[Entry[Failed]]]:
    kinds: dict[str, list[Entry[Failed]]] = {}
    for failure in failures:
        kinds.setdefault(failure.event.failure, []).append(failure)
    return kinds


def _draw_wasted(axes: Axes, timeline: Timeline, unit_s: float) -> None:
    axes.set_title("Wasted time")
    axes.set_ylabel("Share of time")
    edges_ns = np.linspace(0, max(timeline.end_ns, 1), _BINS + 1)
    edges = edges_ns / NS_PER_S / unit_s
    left = np.zeros(_BINS)
    for phase in PHASES:
        if phase == TRAINING:
            continue
        spent = np.diff(_time_in(timeline, phase, edges_ns)) / np.diff(edges_ns)
        colour, hatch = _LOOK[phase]
        axes.bar(
            edges[:-1], spent, bottom=left, width=np.diff(edges), align="edge",
            color=colour, hatch=hatch, edgecolor="white", linewidth=0.0,
        )  # fmt: skip
        left += spent
    kept_ns = _time_in(timeline, TRAINING, edges_ns[-1:])[0]
    wasted = 1 - kept_ns / timeline.end_ns if timeline.end_ns else 0.0
    axes.set_title(f"in all {100 * wasted:.3g} %", loc="right", fontsize=7.0)
    axes.set_ylim(0, min(1.0, 1.05 * float(left.max())) or 1.0)
    axes.yaxis.set_major_formatter(lambda value, _place: f"{100 * value:.3g} %")


def _time_in(timeline: Timeline, phase: str, until_ns: np.ndarray) -> np.ndarray:
    """Return the time spent in `phase` up to each instant."""
    spans = [span for span in timeline.spans if span.phase == phase]
    if not spans:
        return np.zeros(len(until_ns))
    corners = np.array([[span.start_ns, span.end_ns] for span in spans], float).reshape(-1)
    gained = np.zeros(len(corners))
    gained[1::2] = corners[1::2] - corners[::2]
    return np.asarray(np.interp(until_ns, corners, np.cumsum(gained)))


def _draw_close_up(axes: Axes, outages: Sequence[Outage]) -> None:
    if not outages:
        axes.set_title("No failure hit the job")
        axes.set_axis_off()
        return
    count = len(outages)
    axes.set_title("The first recovery" if count == 1 else f"The first {count} recoveries")
    longest_s = max(r.end_ns - r.start_ns for r in outages) / NS_PER_S
    unit_s, unit = _unit_of(longest_s)
    for row, outage in enumerate(outages):
        for span in outage.spans:
            colour, hatch = _LOOK[span.phase]
            axes.barh(
                row, (span.end_ns - span.start_ns) / NS_PER_S / unit_s,
                left=(span.start_ns - outage.start_ns) / NS_PER_S / unit_s,
                height=0.62, color=colour, hatch=hatch, edgecolor="white", linewidth=0.0,
            )  # fmt: skip
        for failure in outage.failures:
            colour, marker = _MARKS.get(failure.event.failure, (picture_style.BLACK, "|"))
            at = (failure.time_ns - outage.start_ns) / NS_PER_S / unit_s
            axes.scatter([at], [row], s=14.0, c=colour, marker=marker, linewidths=0.6, zorder=3)
        end = (outage.end_ns - outage.start_ns) / NS_PER_S / unit_s
        lost = _spoken(outage.lost_progress_ns / NS_PER_S)
        tier = (outage.tier or "the run ended").replace("_", " ")
        said = tier if outage.tier is None else f"{tier}, {lost} lost"
        axes.text(end + 0.02 * longest_s / unit_s, row, said, va="center", fontsize=6.0)
    axes.set_yticks(range(count), [_spoken(r.start_ns / NS_PER_S) for r in outages])
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_xlim(-0.03 * longest_s / unit_s, 1.6 * max(longest_s, 1e-9) / unit_s)
    axes.set_ylabel("Failure at")
    axes.set_xlabel(f"Time since the failure ({unit})")


def _legend(figure: Figure, parts: Sequence[str]) -> None:
    from matplotlib.patches import Patch  # noqa: PLC0415 - half a second for those who draw nothing

    handles = [
        Patch(
            facecolor=_LOOK[part][0],
            hatch=_LOOK[part][1],
            edgecolor="white",
            linewidth=0.0,
            label=_LABELS.get(part, part.replace("_", " ")),
        )
        for part in parts
    ]
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=3, fontsize=6.5,
            columnspacing=1.0, handlelength=1.4, handletextpad=0.5,
        )  # fmt: skip


def _unit_of(span_s: float) -> tuple[float, str]:
    """Return the largest unit of which the span holds three."""
    return next((unit for unit in _UNITS if span_s >= 3 * unit[0]), _UNITS[-1])


def _spoken(seconds: float) -> str:
    for unit_s, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= unit_s:
            return f"{seconds / unit_s:.3g} {unit}"
    return f"{seconds:.3g} s"


def _end(figure: Mapping[str, float | None], end: str) -> float:
    """Return an end of an interval, the mean where none is known."""
    value = figure[end]
    mean = figure["mean"]
    assert mean is not None, "a mean is always known"
    return mean if value is None else value
