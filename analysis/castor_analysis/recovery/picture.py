"""One real recovery as a picture: its phases, and below them what every machine did meanwhile.

Where detection takes most of the outage, a second panel shows what came after it on a scale of its
own.
"""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

from castor_analysis.recovery.panel import (
    DOINGS,
    MEMORY,
    PHASES,
    Lanes,
    Panel,
    Window,
    words_of,
)
from castor_analysis.recovery.timeline import Machine, RecoveryTimeline
from castor_configs.readable import format_seconds
from castor_traces import picture_style as look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS: Final = (".png", ".pdf", ".svg")
WIDTH_IN: Final = 7.2
_NS_PER_S: Final = 1e9
_LANES_MAX: Final = 16
_ZOOM_IF_DETECTION_IS: Final = 0.4
"""A panel of its own for what follows detection, if that took so much of the outage."""


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
    lanes = Lanes(machines)
    windows = _windows(timeline)
    panel_in = 0.55 + 0.2 * lanes.height
    heights = [panel_in] * len(windows)
    with look.figure_in_style(WIDTH_IN, sum(heights) + 0.95) as figure:
        panels = figure.subplots(len(windows), 1, squeeze=False, height_ratios=heights)[:, 0]
        figure.suptitle(title or headline(timeline), fontsize=9.0, x=0.01, ha="left")
        for axes, window in zip(panels, windows, strict=True):
            Panel(axes, timeline, lanes, window).draw()
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


def _windows(timeline: RecoveryTimeline) -> list[Window]:
    inches = WIDTH_IN - 1.1
    outage_s = max(1e-3, (timeline.end_ns - timeline.start_ns) / _NS_PER_S)
    whole = Window(-0.16 * outage_s, 1.12 * outage_s, inches)
    spans = timeline.spans
    if not spans or spans[0].phase != "detection" or len(spans) < 2:
        return [whole]
    known_s = (spans[0].end_ns - timeline.start_ns) / _NS_PER_S
    if known_s < _ZOOM_IF_DETECTION_IS * outage_s:
        return [whole]
    rest_s = outage_s - known_s
    return [whole, Window(known_s - 0.08 * rest_s, outage_s + 0.08 * rest_s, inches)]


def _legend(figure: Figure, timeline: RecoveryTimeline) -> None:
    from matplotlib.lines import Line2D  # noqa: PLC0415 - half a second for those who draw nothing
    from matplotlib.patches import Patch  # noqa: PLC0415 - as above

    handles: list[Patch | Line2D] = []
    # What is too short to be seen needs no words.
    seen_ns = (timeline.end_ns - timeline.start_ns) / 1000
    for span in timeline.spans:
        if span.end_ns - span.start_ns < seen_ns:
            continue
        handles.append(Patch(facecolor=PHASES[span.phase][0], label=" ".join(words_of(span))))
    stretches = [s for m in timeline.machines for t in m.trainers for s in t.stretches]
    since_ns = timeline.start_ns - 0.16 * (timeline.end_ns - timeline.start_ns)
    present = {
        s.doing for s in stretches if s.end_ns - s.start_ns > 5 * seen_ns and s.end_ns > since_ns
    }
    for doing, (colour, hatch, words) in DOINGS.items():
        if doing in present:
            edge = look.VERMILION if hatch else look.GREY
            handles.append(
                Patch(facecolor=colour, hatch=hatch, edgecolor=edge, linewidth=0.3, label=words)
            )
    handles.append(Line2D([], [], color=MEMORY, linewidth=2.5, label="checkpoint memory is there"))
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
