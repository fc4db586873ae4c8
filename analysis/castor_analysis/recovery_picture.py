"""One real recovery as a picture: parts, and below them what every machine did, second by second.

A lane a trainer. Under a machine's trainers lies its checkpoint memory, which outlives them; arrows
show what a machine fetched, and from which one. Where detection takes most of the outage, a second
panel shows what came after it on a scale of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from castor_analysis.recovery_timeline import (
    Doing,
    Machine,
    RecoveryTimeline,
    Retrieval,
    Trainer,
)
from castor_configs.quantities import format_bytes, format_seconds
from castor_traces import picture_style as look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS: Final = (".png", ".pdf", ".svg")
WIDTH_IN: Final = 7.2
_NS_PER_S: Final = 1e9
_LANES_MAX: Final = 16
_ZOOM_IF_DETECTION_IS: Final = 0.4
"""A panel of its own for what follows detection, if that took so much of the outage."""

_PARTS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "detection": (look.YELLOW, look.BLACK),
        "interrupted": (look.GREY, "white"),
        "replacement": (look.PURPLE, look.BLACK),
        "planning": (look.ORANGE, look.BLACK),
        "retrieval": (look.BLUE, "white"),
        "restart": (look.SKY_BLUE, look.BLACK),
        "first_iteration": (look.GREEN, "white"),
    }
)
_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {"first_iteration": "first iteration", "interrupted": "interrupted attempts"}
)
#: Colour, hatch and words of what a trainer does.
_DOINGS: Final[Mapping[Doing, tuple[str, str, str]]] = MappingProxyType(
    {
        Doing.ITERATION: ("#8CCFB9", "", "iteration (its number)"),
        Doing.REDONE: ("#EFA77C", "", "iteration done again later"),
        Doing.CUT_OFF: ("#FFFFFF", "//////", "iteration in flight, lost"),
        Doing.STARTING: ("#BFE1F4", "", "trainer builds model and engine"),
        Doing.WAITING: ("#DDDDDD", "", "waits for its part"),
        Doing.LOADING: ("#3B8FC4", "", "checks and loads its part"),
    }
)
_MEMORY: Final = "#555555"
_ROW: Final = 1.0
_BAR: Final = 0.56
_MEMORY_ROW: Final = 0.42
_MEMORY_BAR: Final = 0.16


@dataclass(frozen=True, slots=True)
class _Window:
    """What one panel shows, in seconds since the failure."""

    start_s: float
    end_s: float
    inches: float

    def inches_of(self, seconds: float) -> float:
        return seconds / (self.end_s - self.start_s) * self.inches


def draw_recovery(timeline: RecoveryTimeline, path: Path, *, title: str = "") -> None:
    """Draw a recovery; the suffix names the format: .png, .pdf, .svg, or .html with an SVG in it.

    Args:
        timeline: the recovery.
        path: where to write.
        title: above the picture; "" for one that says what happened.

    Raises:
        OSError: the file cannot be written.
        ValueError: another suffix.
    """
    if path.suffix not in (*FORMATS, ".html"):
        raise ValueError(f"expected {', '.join(FORMATS)} or .html, not {path.suffix or path.name}")
    machines, left_out = _chosen(timeline)
    lanes = _Lanes(machines)
    windows = _windows(timeline)
    panel_in = 0.55 + 0.2 * lanes.height
    heights = [panel_in] * len(windows)
    with look.figure_in_style(WIDTH_IN, sum(heights) + 0.95) as figure:
        panels = figure.subplots(len(windows), 1, squeeze=False, height_ratios=heights)[:, 0]
        figure.suptitle(title or headline(timeline), fontsize=9.0, x=0.01, ha="left")
        for axes, window in zip(panels, windows, strict=True):
            _draw_panel(axes, timeline, machines, lanes, window)
        panels[0].set_title("The whole outage" if len(windows) > 1 else "", fontsize=8.0)
        if len(windows) > 1:
            panels[1].set_title("What follows the detection", fontsize=8.0)
        note = f"; {left_out} machines that only waited are left out" if left_out else ""
        panels[-1].set_xlabel(f"Seconds since the failure{note}")
        _legend(figure, timeline)
        if path.suffix == ".html":
            _save_html(figure, path, title or headline(timeline))
        else:
            look.save(figure, path)


def headline(timeline: RecoveryTimeline) -> str:
    """Return what failed and what it cost, in one line."""
    recovery = timeline.recovery
    numbers = ", ".join(map(str, recovery.machines))
    which = f"machine{'s' if len(recovery.machines) > 1 else ''} {numbers}"
    what = f"{which} lost" if recovery.kind == "hardware" else f"a process of {which} failed"
    total = recovery.seconds["total"]
    if total is None or recovery.iteration is None:
        return f"{what.capitalize()}: training did not go on"
    lost = recovery.iterations_lost
    again = "no iteration lost" if not lost else f"{lost} iteration{'s' * (lost > 1)} done again"
    went_on = f"goes on from iteration {recovery.iteration}"
    return f"{what.capitalize()}: training {went_on} after {format_seconds(total)}, {again}"


def _chosen(timeline: RecoveryTimeline) -> tuple[list[Machine], int]:
    """Return the machines to show, those that had a part in it before those that waited."""
    machines = timeline.machines
    if len(machines) <= _LANES_MAX:
        return list(machines), 0
    busy = {one.machine for one in timeline.retrievals if one.holder is not None}
    busy |= {one.holder for one in timeline.retrievals if one.holder is not None}
    ordered = sorted(machines, key=lambda m: (not m.failed, m.machine not in busy, m.machine))
    shown = sorted(ordered[:_LANES_MAX], key=lambda machine: machine.machine)
    return shown, len(machines) - len(shown)


class _Lanes:
    """Where each trainer and each machine's memory lies, from the top down."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self.rank: dict[int, float] = {}
        self.memory: dict[int, float] = {}
        self.top: dict[int, float] = {}
        place = 1.5  # the parts lie above
        for machine in machines:
            self.top[machine.machine] = place
            for trainer in machine.trainers:
                self.rank[trainer.rank] = place + _ROW / 2
                place += _ROW
            self.memory[machine.machine] = place - 0.08
            place += _MEMORY_ROW
        self.height = place


def _windows(timeline: RecoveryTimeline) -> list[_Window]:
    inches = WIDTH_IN - 1.1
    outage_s = max(1e-3, (timeline.end_ns - timeline.start_ns) / _NS_PER_S)
    whole = _Window(-0.16 * outage_s, 1.12 * outage_s, inches)
    parts = timeline.parts
    if not parts or parts[0].phase != "detection" or len(parts) < 2:
        return [whole]
    known_s = (parts[0].end_ns - timeline.start_ns) / _NS_PER_S
    if known_s < _ZOOM_IF_DETECTION_IS * outage_s:
        return [whole]
    rest_s = outage_s - known_s
    return [whole, _Window(known_s - 0.08 * rest_s, outage_s + 0.08 * rest_s, inches)]


def _draw_panel(
    axes: Axes,
    timeline: RecoveryTimeline,
    machines: Sequence[Machine],
    lanes: _Lanes,
    window: _Window,
) -> None:
    axes.set_xlim(window.start_s, window.end_s)
    axes.set_ylim(lanes.height, -0.05)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=7.0)
    axes.set_yticks(
        [0.5, *(lanes.top[m.machine] + _ROW * len(m.trainers) / 2 for m in machines)],
        ["parts", *(_name(machine) for machine in machines)],
    )
    _draw_parts(axes, timeline, lanes, window)
    for machine in machines:
        for trainer in machine.trainers:
            _draw_trainer(axes, timeline, trainer, lanes.rank[trainer.rank], window)
        _draw_memory(axes, timeline, machine, lanes, window)
    for retrieval in timeline.retrievals:
        _draw_fetch(axes, timeline, retrieval, lanes, window)
    _draw_failures(axes, timeline, machines, lanes, window)
    _draw_redundant(axes, timeline, lanes, window)


def _name(machine: Machine) -> str:
    if not machine.agents:
        return f"machine {machine.machine}"
    names = " → ".join(dict.fromkeys(machine.agents[-2:]))
    return f"machine {machine.machine}\n{names}"


def _since(timeline: RecoveryTimeline, time_ns: int) -> float:
    return (time_ns - timeline.start_ns) / _NS_PER_S


def _clipped(start_s: float, end_s: float, window: _Window) -> tuple[float, float] | None:
    start_s, end_s = max(start_s, window.start_s), min(end_s, window.end_s)
    return (start_s, end_s) if end_s > start_s else None


def _draw_parts(axes: Axes, timeline: RecoveryTimeline, lanes: _Lanes, window: _Window) -> None:
    for part in timeline.parts:
        shown = _clipped(_since(timeline, part.start_ns), _since(timeline, part.end_ns), window)
        if shown is None:
            continue
        start_s, end_s = shown
        colour, ink = _PARTS[part.phase]
        axes.barh(0.5, end_s - start_s, left=start_s, height=0.8, color=colour, linewidth=0)
        # Behind the lanes, so that each part is seen where it happens.
        axes.axvspan(start_s, end_s, ymax=1 - 1.0 / lanes.height, color=colour, alpha=0.10, lw=0)
        seconds = format_seconds((part.end_ns - part.start_ns) / _NS_PER_S)
        name = _NAMES.get(part.phase, part.phase)
        words = (f"{name} {seconds}", name, seconds)
        is_cut = _since(timeline, part.start_ns) < start_s or end_s < _since(timeline, part.end_ns)
        fitting = [one for one in words if not is_cut and _fits(one, window, end_s - start_s)]
        said = fitting[0] if fitting else ""
        axes.text(
            (start_s + end_s) / 2, 0.5, said, ha="center", va="center", color=ink, fontsize=6.5
        )


def _fits(text: str, window: _Window, seconds: float, size: float = 6.5) -> bool:
    return len(text) * 0.0078 * size + 0.03 < window.inches_of(seconds)


def _draw_trainer(
    axes: Axes, timeline: RecoveryTimeline, trainer: Trainer, lane: float, window: _Window
) -> None:
    for stretch in trainer.stretches:
        shown = _clipped(
            _since(timeline, stretch.start_ns), _since(timeline, stretch.end_ns), window
        )
        if shown is None:
            continue
        start_s, end_s = shown
        colour, hatch, _ = _DOINGS[stretch.doing]
        axes.barh(
            lane, end_s - start_s, left=start_s, height=_BAR, color=colour, hatch=hatch,
            edgecolor=look.VERMILION if hatch else "white", linewidth=0.0 if hatch else 0.6,
        )  # fmt: skip
        if stretch.iteration is not None:
            number = str(stretch.iteration)
            if _fits(number, window, end_s - start_s, 6.0):
                axes.text(
                    (start_s + end_s) / 2, lane, number, ha="center", va="center", fontsize=6.0
                )


def _draw_memory(
    axes: Axes, timeline: RecoveryTimeline, machine: Machine, lanes: _Lanes, window: _Window
) -> None:
    """Draw when a machine's checkpoint memory is there: always, unless the machine was lost."""
    lane = lanes.memory[machine.machine]
    spans = [(window.start_s, window.end_s)]
    gap = _without_memory(timeline, machine)
    if gap is not None:
        lost_s, back_s = gap
        spans = [(window.start_s, lost_s), (back_s, window.end_s)]
    for start_s, end_s in spans:
        shown = _clipped(start_s, end_s, window)
        if shown is not None:
            axes.barh(
                lane, shown[1] - shown[0], left=shown[0], height=_MEMORY_BAR, color=_MEMORY, lw=0
            )


def _without_memory(timeline: RecoveryTimeline, machine: Machine) -> tuple[float, float] | None:
    """Return from when to when a machine held no checkpoint; None if it always did.

    A machine that is lost loses it at once. Where all load from storage, what memory still holds is
    of other iterations, and every machine gives it up with the plan.
    """
    lost = machine.failed and timeline.recovery.kind == "hardware"
    sources = {one.source.partition(":")[0] for one in timeline.retrievals}
    if not sources <= {"own_memory", "peer"}:
        back_ns = timeline.redundant_ns or timeline.end_ns
        given_up_ns = min(one.end_ns for one in timeline.retrievals)
        return 0.0 if lost else _since(timeline, given_up_ns), _since(timeline, back_ns)
    fetched = [
        one.end_ns
        for one in timeline.retrievals
        if one.machine == machine.machine and one.source.startswith("peer")
    ]
    return (0.0, _since(timeline, max(fetched))) if lost and fetched else None


def _draw_fetch(
    axes: Axes,
    timeline: RecoveryTimeline,
    retrieval: Retrieval,
    lanes: _Lanes,
    window: _Window,
) -> None:
    """Draw a fetch as an arrow from the holder's memory; the own part has its words beside it."""
    source = None if retrieval.holder is None else lanes.memory.get(retrieval.holder)
    target = lanes.memory.get(retrieval.machine)
    at_s = _since(timeline, retrieval.end_ns)
    if source is None or target is None or not window.start_s <= at_s <= window.end_s:
        return
    axes.annotate(
        "", (at_s, target), (_since(timeline, retrieval.start_ns), source),
        arrowprops={
            "arrowstyle": "-|>", "color": look.BLUE, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0,
            "mutation_scale": 7, "linestyle": "-" if retrieval.own else ":",
        },
    )  # fmt: skip
    if retrieval.own:
        took = format_seconds((retrieval.end_ns - retrieval.start_ns) / _NS_PER_S)
        is_left = at_s - window.start_s < 0.25 * (window.end_s - window.start_s)
        axes.annotate(
            f"{format_bytes(retrieval.size_bytes)} in {took}", (at_s, (source + target) / 2),
            xytext=(4 if is_left else -3, 0), textcoords="offset points", fontsize=6.0,
            ha="left" if is_left else "right", va="center", color=look.BLUE,
        )  # fmt: skip


def _draw_failures(
    axes: Axes,
    timeline: RecoveryTimeline,
    machines: Sequence[Machine],
    lanes: _Lanes,
    window: _Window,
) -> None:
    shown = {machine.machine for machine in machines}
    for event in timeline.events:
        machine = event.fields.get("machine")
        at_s = _since(timeline, event.time_ns)
        if event.kind != "failure" or machine not in shown or not isinstance(machine, int):
            continue
        if not window.start_s <= at_s <= window.end_s:
            continue
        rank = event.fields.get("rank")
        place = lanes.top[machine] + _ROW / 2
        if isinstance(rank, int) and rank in lanes.rank:
            place = lanes.rank[rank]
        axes.scatter([at_s], [place], marker="X", s=34, color=look.VERMILION, zorder=5, lw=0)
        lost = event.fields.get("failure") == "hardware"
        axes.annotate(
            "machine and its memory lost" if lost else "killed", (at_s, place), xytext=(6, 0),
            textcoords="offset points", fontsize=6.5, va="center", color=look.VERMILION,
        )  # fmt: skip


def _draw_redundant(axes: Axes, timeline: RecoveryTimeline, lanes: _Lanes, window: _Window) -> None:
    if timeline.redundant_ns is None:
        return
    at_s = _since(timeline, timeline.redundant_ns)
    if window.start_s <= at_s <= window.end_s:
        axes.plot([at_s, at_s], [1.0, lanes.height], color=_MEMORY, linewidth=0.6, linestyle=":")
        is_right = window.end_s - at_s < 0.2 * (window.end_s - window.start_s)
        axes.annotate(
            "every replica is there", (at_s, 1.18), xytext=(-3 if is_right else 3, 0),
            textcoords="offset points", fontsize=6.0, ha="right" if is_right else "left",
            va="center", color=_MEMORY,
        )  # fmt: skip


def _legend(figure: Figure, timeline: RecoveryTimeline) -> None:
    from matplotlib.lines import Line2D  # noqa: PLC0415 - half a second for those who draw nothing
    from matplotlib.patches import Patch  # noqa: PLC0415 - as above

    handles: list[Patch | Line2D] = []
    # What is too short to be seen needs no words.
    seen_ns = (timeline.end_ns - timeline.start_ns) / 1000
    for part in timeline.parts:
        if part.end_ns - part.start_ns < seen_ns:
            continue
        seconds = format_seconds((part.end_ns - part.start_ns) / _NS_PER_S)
        name = _NAMES.get(part.phase, part.phase)
        handles.append(Patch(facecolor=_PARTS[part.phase][0], label=f"{name} {seconds}"))
    stretches = [s for m in timeline.machines for t in m.trainers for s in t.stretches]
    since_ns = timeline.start_ns - 0.16 * (timeline.end_ns - timeline.start_ns)
    present = {
        s.doing for s in stretches if s.end_ns - s.start_ns > 5 * seen_ns and s.end_ns > since_ns
    }
    for doing, (colour, hatch, words) in _DOINGS.items():
        if doing in present:
            edge = look.VERMILION if hatch else look.GREY
            handles.append(
                Patch(facecolor=colour, hatch=hatch, edgecolor=edge, linewidth=0.3, label=words)
            )
    handles.append(Line2D([], [], color=_MEMORY, linewidth=2.5, label="checkpoint memory is there"))
    if any(one.holder is not None for one in timeline.retrievals):
        handles.append(Line2D([], [], color=look.BLUE, label="fetch: own part"))
        if any(one.holder is not None and not one.own for one in timeline.retrievals):
            handles.append(
                Line2D([], [], color=look.BLUE, linestyle=":", label="fetch: replica for another")
            )
    figure.legend(
        handles=handles, loc="outside lower left", ncols=4, fontsize=6.5, columnspacing=1.2,
        handlelength=1.5, handletextpad=0.5,
    )  # fmt: skip


def _save_html(figure: Figure, path: Path, title: str) -> None:
    """Write a page of its own with the picture as inline SVG."""
    from html import escape  # noqa: PLC0415 - only pages need it

    from castor_configs.atomic import write_text  # noqa: PLC0415 - as above

    drawing = StringIO()
    figure.savefig(drawing, format="svg", metadata={"Date": None})
    svg = drawing.getvalue()
    svg = svg[svg.index("<svg") :]
    write_text(
        path,
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title>"
        "<style>body{margin:2rem;background:#fff}svg{width:100%;max-width:72rem;height:auto}"
        f"</style></head><body>\n{svg}</body></html>\n",
    )
