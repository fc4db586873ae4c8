"""A picture of an iteration, scheme below scheme, in the manner of the paper's Fig. 4 and 5."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from castor_policy.interleaving import NONE
from castor_sim.iteration.run import IterationReport, SchemeResult
from castor_sim.iteration.tasks import Kind, Lane
from castor_sim.iteration.timeline import COPY_LANE, Interval, Traffic
from castor_traces import picture_style
from castor_traces.picture_style import picture, picture_paths

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NS_PER_S: Final = 1e9
_ROWS: Final = (Lane.GPU, Lane.NETWORK, COPY_LANE)
_LANE_LABELS: Final = ("GPU", "network", "to CPU")

#: Label, colour and hatch of what a lane does; hatches tell neighbours apart in grey.
_LOOK: Final[Mapping[str, tuple[str, str, str]]] = MappingProxyType(
    {
        Kind.FORWARD: ("forward", picture_style.SKY_BLUE, ""),
        Kind.RECOMPUTE: ("re-computation", picture_style.GREY, ""),
        Kind.BACKWARD: ("backward", picture_style.BLUE, ""),
        Kind.COMPUTE: ("computation", picture_style.SKY_BLUE, ""),
        Kind.CHECK: ("gradient check", picture_style.YELLOW, ""),
        Kind.UPDATE: ("update", picture_style.BLACK, ""),
        Kind.GATHER: ("training traffic", picture_style.GREEN, ""),
        Kind.REDUCE: ("training traffic", picture_style.GREEN, ""),
        Kind.SEND: ("training traffic", picture_style.GREEN, ""),
        Traffic.CHUNK: ("checkpoint chunk", picture_style.VERMILION, ""),
        Traffic.COPY: ("copy of chunk", picture_style.ORANGE, ""),
        Traffic.LOCAL_COPY: ("copy of own replica", picture_style.PURPLE, "////"),
    }
)


def draw_iteration(report: IterationReport, path_stem: str | Path) -> tuple[Path, Path]:
    """Draw every scheme's iteration as a whole, and a close-up of an idle span in its midst.

    One machine is drawn, the first; a scheme that runs out of memory is drawn as it would run.

    Args:
        report: the schemes.
        path_stem: where to write; ".png" and ".pdf" are appended to the name.

    Returns:
        The paths of the PNG and the PDF.

    Raises:
        OSError: a file cannot be written.
    """
    results = list(report.results.values())
    latest_ns = max(interval.end_ns for result in results for interval in result.intervals)
    start_ns, end_ns = _close_up(report)
    with picture(path_stem, 0.9 + 0.72 * len(results)) as figure:
        axes = figure.subplots(len(results), 2, sharex="col", sharey=True, squeeze=False)
        kinds: set[str] = set()
        for (whole, near), result in zip(axes, results, strict=True):
            own = [interval for interval in result.intervals if interval.machine == 0]
            for panel, low_ns, high_ns in ((whole, 0, latest_ns), (near, start_ns, end_ns)):
                _draw(panel, own, low_ns, high_ns)
                panel.set_xlim(low_ns / NS_PER_S, high_ns / NS_PER_S)
            kinds |= {interval.kind for interval in own}
            whole.set_title(_title(report, result), fontsize=7)
            whole.axvline(result.iteration_ns / NS_PER_S, color=picture_style.BLACK, lw=0.6, ls=":")
            whole.set_yticks(range(len(_ROWS)), _LANE_LABELS)
            whole.set_ylim(len(_ROWS) - 0.5, -0.5)
        axes[-1][0].set_xlabel("Time (s)")
        axes[-1][1].set_xlabel("The same, closer (s)")
        _legend(figure, kinds)
    return picture_paths(path_stem)


def _draw(axes: Axes, intervals: Iterable[Interval], low_ns: int, high_ns: int) -> None:
    by_look: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for interval in intervals:
        if interval.lane not in _ROWS or interval.end_ns < low_ns or interval.start_ns > high_ns:
            continue
        row = _ROWS.index(interval.lane)
        bar = (interval.start_ns / NS_PER_S, interval.duration_ns / NS_PER_S)
        by_look.setdefault((row, interval.kind), []).append(bar)
    for (row, kind), bars in sorted(by_look.items()):
        _, colour, hatch = _LOOK[kind]
        axes.broken_barh(
            bars, (row - 0.4, 0.8), facecolors=colour, hatch=hatch, edgecolor="white", linewidth=0.0
        )


def _title(report: IterationReport, result: SchemeResult) -> str:
    if result.out_of_memory:
        return f"{result.scheme}: out of memory ({result.peak_buffer_bytes / 1e6:.0f} MB)"
    took = f"{result.scheme}: {result.iteration_ns / NS_PER_S:.1f} s"
    return took if result.scheme == NONE else f"{took} ({report.overhead(result.scheme):+z.1%})"


def _close_up(report: IterationReport) -> tuple[int, int]:
    """Return a window around the idle span nearest to three quarters of the iteration."""
    spans: Sequence[tuple[int, int]] = [(s.start_ns, s.idle_ns) for s in report.spans[0]]
    end_ns = report.baseline.iteration_ns
    start_ns, idle_ns = min(spans, key=lambda span: (abs(span[0] - end_ns * 3 // 4), span))
    width_ns = max(end_ns // 60, 4 * idle_ns)
    middle_ns = start_ns + idle_ns // 2
    low_ns = max(0, middle_ns - width_ns // 2)
    return low_ns, min(low_ns + width_ns, end_ns)


def _legend(figure: object, kinds: Iterable[str]) -> None:
    from matplotlib.figure import Figure  # noqa: PLC0415 - as in castor_traces.picture_style
    from matplotlib.patches import Patch  # noqa: PLC0415 - as above

    assert isinstance(figure, Figure)
    shown = set(kinds)
    labels = {_LOOK[kind][0]: _LOOK[kind] for kind in _LOOK if kind in shown}
    handles = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="white", linewidth=0.0, label=label)
        for label, colour, hatch in labels.values()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=6.5)
