"""The drawings of compare.html, as SVG that takes the page's own text colour."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from castor_analysis.compare.comparison import Case, Comparison
from castor_analysis.compare.measured_run import IDLE, ITERATION
from castor_analysis.compare.points import Point, S
from castor_policy.interleaving import NONE
from castor_sim.iteration.tasks import Kind, Lane
from castor_sim.iteration.timeline import COPY_LANE, Interval, Traffic
from castor_traces import picture_style
from castor_traces.picture_style import figure_in_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NS_PER_MS: Final = 1e6
MEDIAN_GOAL: Final = 0.05
WORST_GOAL: Final = 0.15

#: Family of quantities: label, colour, marker. A recovery's phases are one family.
_FAMILIES: Final[Mapping[str, tuple[str, str, str]]] = MappingProxyType(
    {
        ITERATION: ("iteration", picture_style.BLUE, "o"),
        IDLE: ("network idle", picture_style.SKY_BLUE, "s"),
        "checkpoint_network_s": ("checkpoint on the network", picture_style.VERMILION, "^"),
        "checkpoint_complete_s": ("checkpoint complete", picture_style.ORANGE, "v"),
        "recovery": ("recovery", picture_style.GREEN, "D"),
        "other": ("effective time, iterations lost", picture_style.PURPLE, "P"),
    }
)

_PHASES: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "detection": (picture_style.YELLOW, ""),
        "interrupted": (picture_style.GREY, ""),
        "replacement": (picture_style.PURPLE, "...."),
        "planning": (picture_style.ORANGE, "\\\\\\\\"),
        "retrieval": (picture_style.BLUE, ""),
        "restart": (picture_style.SKY_BLUE, "////"),
        "first_iteration": (picture_style.GREEN, ""),
    }
)
_REST: Final = (picture_style.GREY, "")


def family(quantity: str) -> str:
    """Return the family of a quantity, a key of the legend."""
    if quantity in _FAMILIES:
        return quantity
    return "recovery" if quantity.startswith("recovery") else "other"


def scatter(points: Sequence[Point]) -> str:
    """Draw simulated over measured, both logarithmic, with the goals as bands."""
    with figure_in_style(4.3, 3.6) as figure:
        axes = figure.subplots()
        timed = [p for p in points if p.unit == S and p.measured > 0 and p.simulated > 0]
        values = [value for p in timed for value in (p.measured, p.simulated)] or [0.1, 1.0]
        low, high = min(values) / 1.5, max(values) * 1.5
        for share, alpha in ((WORST_GOAL, 0.10), (MEDIAN_GOAL, 0.18)):
            below, above = ([edge * (1 + sign * share) for edge in (low, high)] for sign in (-1, 1))
            axes.fill_between(
                [low, high], below, above, color=picture_style.GREY, alpha=alpha, lw=0
            )
        axes.plot([low, high], [low, high], color=picture_style.BLACK, lw=0.6)
        for name, (label, colour, marker) in _FAMILIES.items():
            own = [point for point in timed if family(point.quantity) == name]
            if own:
                xs = [point.measured for point in own]
                ends = [
                    [p.measured - p.spread[0] for p in own],
                    [p.spread[1] - p.measured for p in own],
                ]
                axes.errorbar(
                    xs,
                    [point.simulated for point in own],
                    xerr=[[max(0.0, length) for length in side] for side in ends],
                    fmt=marker,
                    color=colour,
                    ms=3.5,
                    elinewidth=0.5,
                    alpha=0.9,
                    label=label,
                )
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
        axes.set_xlabel("measured (s); bars: 10th to 90th percentile")
        axes.set_ylabel("simulated (s)")
        if timed:
            axes.legend(loc="upper left")
        return _svg(figure, "scatter")


def histogram(points: Sequence[Point]) -> str:
    """Draw how the held-out errors are spread, stacked by family in the colours of `scatter`."""
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - as in castor_traces.picture_style

    with figure_in_style(4.3, 3.6) as figure:
        axes = figure.subplots()
        errors = {
            name: [
                100 * p.error for p in points if p.error is not None and family(p.quantity) == name
            ]
            for name in _FAMILIES
        }
        shown = {name: found for name, found in errors.items() if found}
        width = max(
            20.0, 2.0 * -(-max((abs(e) for f in shown.values() for e in f), default=0) // 2)
        )
        bins = [-width + width / 10 * index for index in range(21)]
        axes.axvspan(
            -100 * WORST_GOAL, 100 * WORST_GOAL, color=picture_style.GREY, alpha=0.10, lw=0
        )
        axes.axvspan(
            -100 * MEDIAN_GOAL, 100 * MEDIAN_GOAL, color=picture_style.GREY, alpha=0.18, lw=0
        )
        if shown:
            axes.hist(
                list(shown.values()),
                bins=bins,
                stacked=True,
                color=[_FAMILIES[name][1] for name in shown],
                edgecolor="white",
                linewidth=0.3,
            )
        axes.axvline(0, color=picture_style.BLACK, lw=0.6)
        axes.set_xlabel("error (%): (simulated - measured)/measured")
        axes.set_ylabel("held-out points")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        return _svg(figure, "histogram")


def scheme_bars(cases: Sequence[Case]) -> str:
    """Draw the iteration under each scheme, a panel for each model and bandwidth."""
    panels: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        panels.setdefault((case.model, case.setting.link), []).append(case)
    models = list(dict.fromkeys(model for model, _ in panels))
    links = list(dict.fromkeys(link for _, link in panels))
    with figure_in_style(9.0, 0.5 + 1.9 * len(models)) as figure:
        grid = figure.subplots(len(models), len(links), squeeze=False, sharey="row")
        for row, model in enumerate(models):
            for column, link in enumerate(links):
                axes = grid[row][column]
                _schemes(axes, panels.get((model, link), []))
                axes.set_title(f"{model}; {link}")
                if column == 0:
                    axes.set_ylabel("iteration (s)")
        found = [panel.get_legend_handles_labels() for row in grid for panel in row]
        by_label = {
            label: handle
            for handles, labels in found
            for handle, label in zip(handles, labels, strict=True)
        }
        figure.legend(by_label.values(), by_label.keys(), loc="outside lower center", ncols=3)
        return _svg(figure, "schemes")


def _schemes(axes: Axes, cases: Sequence[Case]) -> None:
    for place, case in enumerate(cases):
        samples = sorted(value for run in case.runs for value in run.samples[ITERATION])
        middle = samples[len(samples) // 2]
        axes.bar(place - 0.2, middle, 0.38, color=picture_style.BLUE, label="measured")
        axes.scatter(
            [place - 0.2] * len(samples),
            samples,
            s=1.5,
            color=picture_style.BLACK,
            alpha=0.5,
            zorder=3,
        )
        # What was fitted is no prediction, and is drawn as none.
        axes.bar(
            place + 0.2,
            case.prediction.values[ITERATION],
            0.38,
            color="none" if case.fitted else picture_style.ORANGE,
            edgecolor=picture_style.ORANGE,
            hatch="" if case.fitted else "////",
            linewidth=0.6,
            label="calibrated on" if case.fitted else "simulated",
        )
    axes.set_xticks(range(len(cases)), [case.setting.scheme for case in cases], rotation=20)


def timelines(case: Case) -> str:
    """Draw one iteration as it was measured without checkpoints, above the simulated one."""
    run = case.runs[0]
    with figure_in_style(9.0, 1.7) as figure:
        axes = figure.subplots()
        end_ms = 0.0
        bars = [
            (one.start_ns / NS_PER_MS, (one.end_ns - one.start_ns) / NS_PER_MS)
            for one in run.collectives
        ]
        reduces = ["reduce" in one.operation for one in run.collectives]
        for reduce, colour in ((False, picture_style.GREEN), (True, picture_style.SKY_BLUE)):
            own = [bar for bar, is_reduce in zip(bars, reduces, strict=True) if is_reduce == reduce]
            axes.broken_barh(own, (-0.4, 0.8), facecolors=colour, lw=0)
        update_ms = run.update_from_ns / NS_PER_MS
        axes.plot([update_ms, update_ms], [-0.45, 0.45], color=picture_style.BLACK, lw=1)
        end_ms = max([update_ms, *(start + width for start, width in bars)])
        for lane, row in ((Lane.NETWORK, 1), (Lane.GPU, 2), (COPY_LANE, 3)):
            own_intervals = [
                i for i in case.prediction.intervals if i.lane == lane and not i.machine
            ]
            end_ms = max([end_ms, *(i.end_ns / NS_PER_MS for i in own_intervals)])
            _lane(axes, own_intervals, row)
        labels = ["network, measured", "network, simulated", "computing, simulated"]
        if any(i.lane == COPY_LANE for i in case.prediction.intervals):
            labels.append("copies to CPU, simulated")
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_xlim(0, end_ms * 1.01)
        axes.set_xlabel("ms from the start of the iteration")
        axes.set_title(f"{case.model}, {case.setting.link}, {case.setting.scheme}")
        name = f"timeline-{case.setting.link_bps}-{case.setting.scheme}"
        return _svg(figure, name)


def _lane(axes: Axes, intervals: Sequence[Interval], row: int) -> None:
    looks: dict[str, str] = {
        Kind.REDUCE: picture_style.SKY_BLUE,
        Kind.COMPUTE: picture_style.GREY,
        Kind.UPDATE: picture_style.BLACK,
        Traffic.CHUNK: picture_style.VERMILION,
        Traffic.COPY: picture_style.ORANGE,
        Traffic.LOCAL_COPY: picture_style.PURPLE,
    }
    by_colour: dict[str, list[tuple[float, float]]] = {}
    for interval in intervals:
        kind = Kind.REDUCE if "reduce" in interval.name else interval.kind
        colour = looks.get(kind, picture_style.GREEN)
        bar = (interval.start_ns / NS_PER_MS, interval.duration_ns / NS_PER_MS)
        by_colour.setdefault(colour, []).append(bar)
    for colour, bars in sorted(by_colour.items()):
        axes.broken_barh(bars, (row - 0.4, 0.8), facecolors=colour, lw=0)


def recovery_bars(points: Sequence[Point]) -> str:
    """Draw each recovery's phases, measured above simulated; "" where there is none."""
    groups = recovery_groups(points)
    if not groups:
        return ""
    with figure_in_style(9.0, 0.9 + 0.5 * len(groups)) as figure:
        axes = figure.subplots()
        seen: set[str] = set()
        for row, own in enumerate(groups.values()):
            ordered = sorted(own, key=_phase_order)
            _stacked(axes, row - 0.19, ordered, [point.measured for point in ordered], seen)
            _stacked(axes, row + 0.19, ordered, [point.simulated for point in ordered], seen)
        axes.set_yticks(
            range(len(groups)),
            [", ".join((*kind, *where)).replace("_", " ") for kind, where in groups],
        )
        axes.invert_yaxis()
        axes.set_xlabel("s from the failure; upper bar measured, lower bar simulated")
        figure.legend(loc="outside lower center", ncols=len(seen))
        return _svg(figure, "recovery")


def recovery_groups(
    points: Sequence[Point],
) -> dict[tuple[tuple[str, ...], tuple[str, ...]], list[Point]]:
    """Return the phases of each kind of recovery in each setting.

    A phase whose point is of all settings of a kind belongs to each of them.
    """
    of_kind: dict[tuple[str, ...], list[Point]] = {}
    groups: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Point]] = {}
    for point in points:
        if point.quantity.startswith("recovery_") and point.quantity != "recovery_total_s":
            kind, where = (
                tuple(str(point.setting[key]) for key in keys if key in point.setting)
                for keys in (("failure", "from", "replaced_by"), ("model", "link"))
            )
            if where:
                groups.setdefault((kind, where), []).append(point)
            else:
                of_kind.setdefault(kind, []).append(point)
    return {key: [*of_kind.get(key[0], ()), *own] for key, own in groups.items()}


def _stacked(
    axes: Axes, place: float, points: Sequence[Point], values: Sequence[float], seen: set[str]
) -> None:
    left = 0.0
    for point, value in zip(points, values, strict=True):
        phase = _phase(point)
        colour, hatch = _PHASES.get(phase, _REST)
        axes.barh(
            place,
            value,
            0.34,
            left=left,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.0,
            label="" if phase in seen else phase.replace("_", " "),
        )
        seen.add(phase)
        left += value


def _phase(point: Point) -> str:
    """Return what a phase is called; several that share a point, by the longest of them."""
    return point.quantity.removeprefix("recovery_").removesuffix("_s").removesuffix("_etc")


def _phase_order(point: Point) -> tuple[int, str]:
    phase = _phase(point)
    known = list(_PHASES)
    return (known.index(phase) if phase in known else len(known), phase)


def pictured_cases(comparison: Comparison) -> list[Case]:
    """Return the iterations worth a timeline: one model's, without checkpoints and pipelined."""
    profiled = [case for case in comparison.cases if case.runs[0].collectives and not case.fitted]
    chosen: list[Case] = []
    for scheme in (NONE, "pipelined"):
        found = [case for case in profiled if case.setting.scheme == scheme]
        chosen += found[:1]
    return chosen


def _svg(figure: Figure, name: str) -> str:
    """Return a figure as SVG to stand in a page: transparent, in the page's text colour.

    Names inside are made unique by `name`, since several drawings share a page.
    """
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg", transparent=True, metadata={"Date": None})
    svg = drawing.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = svg.replace("#000000", "currentColor")
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r' height="[\d.]+pt"', "", svg, count=1)
    )
