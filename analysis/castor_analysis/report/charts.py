"""The report's drawings: SVG by hand, in the page's own colours: they follow light and dark.

Text keeps its size: a chart that is wider than the window is scrolled, not shrunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Final

from castor_analysis.report.story import Iteration, Story
from castor_configs.readable import format_seconds
from castor_records.phases import MEASURED
from castor_records.recoveries import Recovery

_NS_PER_S: Final = 1e9

STYLE: Final = """
:root{--new:#0072b2;--stall:#e69f00;--hardware:#d55e00;--software:#cc79a7;--cut:#a8763e;
--redone:#009e73;--rest:#9aa0a8;--band:#d55e0022}
@media (prefers-color-scheme:dark){:root{--new:#56b4e9;--stall:#f0c04a;--hardware:#ff8a4c;
--software:#e6a0c8;--cut:#c99a62;--redone:#3cc79c;--rest:#6b7178;--band:#ff8a4c2e}}
svg.chart{width:auto;min-width:680px;max-width:none}
svg.chart text{font-size:12px}.axis{stroke:var(--line);stroke-width:1}.tick{fill:var(--dim)}
.stack{display:flex;height:26px;border-radius:6px;overflow:hidden;background:var(--line)}
.stack i{display:block;min-width:2px}
.legend{white-space:nowrap}td .legend{display:flex;align-items:baseline;white-space:normal}
.key{display:inline-block;flex:none;width:11px;height:11px;border-radius:3px;margin-right:7px}
.wrap td,.wrap th{white-space:normal}.wrap td.n{white-space:nowrap}
"""

PHASE_COLOURS: Final[Mapping[str, str]] = dict(
    zip(
        map(str, MEASURED),
        ("#e69f00", "#777777", "#cc79a7", "#d55e00", "#0072b2", "#56b4e9", "#009e73"),
        strict=True,
    )
)

_WIDTH, _HEIGHT = 1000, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 26, 40
_DOTS_MAX: Final = 1500
"""Iterations drawn one by one; of more, a bar from least to most for each column of pixels."""


def stack(parts: Iterable[tuple[str, float, str]]) -> str:
    """Draw parts of a whole as one bar: (name, size, CSS colour) each."""
    found = [part for part in parts if part[1] > 0]
    total = sum(size for _, size, _ in found) or 1.0
    return '<div class="stack">{}</div>\n'.format(
        "".join(
            f'<i style="flex:{100 * size / total:.4f} 0 0;background:{colour}" '
            f'title="{escape(name)}: {format_seconds(size)}, {100 * size / total:.2f} %"></i>'
            for name, size, colour in found
        )
    )


def key(colour: str, name: str) -> str:
    """Return an entry of a legend."""
    dot = f'<i class="key" style="background:{colour}"></i>'
    return f'<span class="legend">{dot}{escape(name)}</span>'


def recovery_bar(recovery: Recovery, longest_s: float) -> str:
    """Draw a recovery's phases, as long as it is beside the longest one."""
    spans = [(phase, recovery.seconds.get(phase) or 0.0) for phase in map(str, MEASURED)]
    total_s = sum(seconds for _, seconds in spans)
    width = 100 * total_s / longest_s if longest_s > 0 else 0
    parts = [(name.replace("_", " "), s, PHASE_COLOURS[name]) for name, s in spans]
    return f'<div style="width:{max(width, 1):.2f}%">{stack(parts)}</div>'


def iteration_chart(story: Story) -> str:
    """Draw how long each iteration took, over the time since training began."""
    shown = [one for one in story.iterations if one.seconds > 0]
    if not shown or story.begun_ns is None:
        return '<p class="dim">Nothing says how long an iteration took.</p>\n'
    chart = _Chart(story, shown)
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        'aria-label="time of each iteration over the time of the run">'
        f"{chart.axes()}{chart.outages()}{chart.marks()}</svg>\n"
    )


class _Chart:
    def __init__(self, story: Story, shown: Sequence[Iteration]) -> None:
        self._story = story
        self._shown = shown
        self._begun_ns = story.begun_ns or 0
        self._span_ns = max(1, story.end_ns - self._begun_ns)
        times = sorted(one.seconds for one in shown)
        self._log = times[-1] > 12 * times[len(times) // 2]
        self._most = times[-1] * (1.25 if self._log else 1.08)
        self._least = times[0] / 1.25 if self._log else 0.0

    def _x(self, time_ns: float) -> float:
        share = (time_ns - self._begun_ns) / self._span_ns
        return _LEFT + min(1.0, max(0.0, share)) * (_WIDTH - _LEFT - _RIGHT)

    def _y(self, seconds: float) -> float:
        if self._log:
            seconds = max(seconds, self._least)
            share = math.log(seconds / self._least) / math.log(self._most / self._least)
        else:
            share = seconds / self._most
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self) -> str:
        """Draw both axes, with what they measure."""
        floor = _HEIGHT - _BOTTOM
        found = [
            f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{floor}" y2="{floor}"/>',
            f'<text class="tick" x="{_LEFT}" y="14">time of an iteration'
            f"{' (logarithmic)' if self._log else ''}</text>",
            f'<text class="tick" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">'
            "time since training began</text>",
        ]
        for seconds in self._levels():
            y = self._y(seconds)
            found.append(
                f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" '
                f'y2="{y:.1f}"/><text class="tick" x="{_LEFT - 7}" y="{y + 4:.1f}" '
                f'text-anchor="end">{format_seconds(seconds)}</text>'
            )
        for seconds in _round_steps(self._span_ns / _NS_PER_S, 6):
            x = self._x(self._begun_ns + seconds * _NS_PER_S)
            found.append(
                f'<text class="tick" x="{x:.1f}" y="{floor + 17}" text-anchor="middle">'
                f"{format_seconds(seconds)}</text>"
            )
        return "".join(found)

    def _levels(self) -> list[float]:
        if not self._log:
            return _round_steps(self._most, 4)[1:]
        first = math.floor(math.log10(self._least)) + 1
        last = math.ceil(math.log10(self._most))
        return [10.0**power for power in range(first, last)] or [self._shown[0].seconds]

    def outages(self) -> str:
        """Shade the time in which training stood, numbered as the recoveries are."""
        found = []
        for number, outage in enumerate(self._story.outages, start=1):
            left, right = self._x(outage.start_ns), self._x(outage.end_ns)
            found.append(
                f'<rect x="{left:.1f}" y="{_TOP - 4}" width="{max(1.5, right - left):.1f}" '
                f'height="{_HEIGHT - _TOP - _BOTTOM + 4}" fill="var(--band)"/>'
                f'<text x="{left + 3:.1f}" y="{_TOP + 9}" class="bad">{number}</text>'
            )
        return "".join(found)

    def marks(self) -> str:
        """Draw the iterations, and in each the wait for its checkpoint."""
        if len(self._shown) > _DOTS_MAX:
            return self._columns()
        found = []
        for one in self._shown:
            x, y = self._x(one.end_ns), self._y(one.seconds)
            if one.stall_s > 0:
                low = self._y(one.seconds - one.stall_s)
                found.append(
                    f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y:.1f}" y2="{low:.1f}" '
                    'stroke="var(--stall)" stroke-width="3"/>'
                )
            colour = "var(--redone)" if one.redone else "var(--new)"
            also = ", run again" if one.redone else ""
            stall = f", {format_seconds(one.stall_s)} stalled" if one.stall_s > 0 else ""
            found.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}"><title>iteration '
                f"{one.number}{also}: {format_seconds(one.seconds)}{stall}</title></circle>"
            )
        return "".join(found)

    def _columns(self) -> str:
        columns: dict[int, list[Iteration]] = {}
        for one in self._shown:
            columns.setdefault(round(self._x(one.end_ns)), []).append(one)
        found = []
        for x, ones in sorted(columns.items()):
            times = sorted(one.seconds for one in ones)
            stalls = sorted(one.stall_s for one in ones)
            middle, stall_s = times[len(times) // 2], stalls[len(stalls) // 2]
            top, bottom = self._y(times[-1]), self._y(times[0])
            found.append(
                f'<line x1="{x}" x2="{x}" y1="{top:.1f}" y2="{bottom + 1:.1f}" '
                'stroke="var(--new)" stroke-width="1" opacity="0.45"/>'
                f'<line x1="{x}" x2="{x}" y1="{self._y(middle):.1f}" '
                f'y2="{self._y(max(0.0, middle - stall_s)):.1f}" stroke="var(--stall)"/>'
                f'<circle cx="{x}" cy="{self._y(middle):.1f}" r="1.4" fill="var(--new)"/>'
            )
        return "".join(found)


def _round_steps(most: float, about: int) -> list[float]:
    """Return 0 and about so many round numbers up to `most`."""
    if most <= 0:
        return [0.0]
    rough = most / about
    steps = (1, 2, 5, 10) if most < 120 else (1, 2, 3, 6, 10)
    scale = 10 ** math.floor(math.log10(rough))
    if most >= 120:  # minutes, hours and days are not decimal
        known = (10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
        step = next((s for s in known if s >= rough), 86400 * math.ceil(rough / 86400))
    else:
        step = next(s * scale for s in steps if s * scale >= rough)
    return [index * step for index in range(int(most / step) + 1)]
