"""One panel of a recovery's picture: the phases on top, and a lane for each trainer below.

Under a machine's trainers lies its checkpoint memory, which outlives them; arrows show what a
machine fetched, and from which one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from castor_analysis.recovery.timeline import (
    Doing,
    Machine,
    RecoveryTimeline,
    Retrieval,
    Trainer,
)
from castor_configs.readable import format_bytes, format_seconds
from castor_records.events.event import of_kind
from castor_records.events.failures import Failed
from castor_records.phases import Span
from castor_traces import picture_style as look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PHASES: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
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
"""Colours of a phase and of the words on it."""

DOINGS: Final[Mapping[Doing, tuple[str, str, str]]] = MappingProxyType(
    {
        Doing.ITERATION: ("#8CCFB9", "", "iteration (its number)"),
        Doing.REDONE: ("#EFA77C", "", "iteration done again later"),
        Doing.CUT_OFF: ("#FFFFFF", "//////", "iteration in flight, lost"),
        Doing.STARTING: ("#BFE1F4", "", "trainer builds model and engine"),
        Doing.JOINING: ("#D9D2E9", "", "trainer meets the others anew"),
        Doing.WAITING: ("#DDDDDD", "", "waits for its part"),
        Doing.LOADING: ("#3B8FC4", "", "checks and loads its part"),
    }
)
"""Colour, hatch and words of what a trainer does."""

MEMORY: Final = "#555555"
"""Colour of checkpoint memory."""

_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {"first_iteration": "first iteration", "interrupted": "interrupted attempts"}
)
_NS_PER_S: Final = 1e9
_ROW: Final = 1.0
_BAR: Final = 0.56
_MEMORY_ROW: Final = 0.42
_MEMORY_BAR: Final = 0.16


@dataclass(frozen=True, slots=True)
class Window:
    """What one panel shows, in seconds since the failure, and how wide it is."""

    start_s: float
    end_s: float
    inches: float

    def inches_of(self, seconds: float) -> float:
        """Return how wide so long a time is drawn."""
        return seconds / (self.end_s - self.start_s) * self.inches

    def clipped(self, start_s: float, end_s: float) -> tuple[float, float] | None:
        """Return what is seen of a span; None if nothing is."""
        start_s, end_s = max(start_s, self.start_s), min(end_s, self.end_s)
        return (start_s, end_s) if end_s > start_s else None


class Lanes:
    """Where each trainer and each machine's memory lies, from the top down."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self.machines = tuple(machines)
        self.rank: dict[int, float] = {}
        self.memory: dict[int, float] = {}
        self.top: dict[int, float] = {}
        place = 1.5  # the phases lie above
        for machine in machines:
            self.top[machine.machine] = place
            for trainer in machine.trainers:
                self.rank[trainer.rank] = place + _ROW / 2
                place += _ROW
            self.memory[machine.machine] = place - 0.08
            place += _MEMORY_ROW
        self.height = place


def words_of(span: Span) -> tuple[str, str]:
    """Return how a phase of an outage is called, and how long it took."""
    return _NAMES.get(span.phase, span.phase), format_seconds(
        (span.end_ns - span.start_ns) / _NS_PER_S
    )


@dataclass(frozen=True, slots=True)
class Panel:
    """A recovery within one window, on axes of its own."""

    axes: Axes
    timeline: RecoveryTimeline
    lanes: Lanes
    window: Window

    def draw(self) -> None:
        """Draw all of it."""
        axes, lanes = self.axes, self.lanes
        axes.set_xlim(self.window.start_s, self.window.end_s)
        axes.set_ylim(lanes.height, -0.05)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0, labelsize=7.0)
        axes.set_yticks(
            [0.5, *(lanes.top[m.machine] + _ROW * len(m.trainers) / 2 for m in lanes.machines)],
            ["phases", *(_name(machine) for machine in lanes.machines)],
        )
        for span in self.timeline.spans:
            self._draw_phase(span)
        for machine in lanes.machines:
            for trainer in machine.trainers:
                self._draw_trainer(trainer)
            self._draw_memory(machine)
        for retrieval in self.timeline.retrievals:
            self._draw_fetch(retrieval)
        self._draw_failures()
        self._draw_redundant()

    def _since(self, time_ns: int) -> float:
        return (time_ns - self.timeline.start_ns) / _NS_PER_S

    def _fits(self, text: str, seconds: float, size: float = 6.5) -> bool:
        return len(text) * 0.0078 * size + 0.03 < self.window.inches_of(seconds)

    def _draw_phase(self, span: Span) -> None:
        whole = (self._since(span.start_ns), self._since(span.end_ns))
        shown = self.window.clipped(*whole)
        if shown is None:
            return
        start_s, end_s = shown
        colour, ink = PHASES[span.phase]
        self.axes.barh(0.5, end_s - start_s, left=start_s, height=0.8, color=colour, linewidth=0)
        # Behind the lanes, so that each phase is seen where it happens.
        above = 1 - 1.0 / self.lanes.height
        self.axes.axvspan(start_s, end_s, ymax=above, color=colour, alpha=0.10, lw=0)
        name, seconds = words_of(span)
        words = (f"{name} {seconds}", name, seconds)
        fitting = [one for one in words if shown == whole and self._fits(one, end_s - start_s)]
        said = fitting[0] if fitting else ""
        self.axes.text(
            (start_s + end_s) / 2, 0.5, said, ha="center", va="center", color=ink, fontsize=6.5
        )

    def _draw_trainer(self, trainer: Trainer) -> None:
        lane = self.lanes.rank[trainer.rank]
        for stretch in trainer.stretches:
            shown = self.window.clipped(self._since(stretch.start_ns), self._since(stretch.end_ns))
            if shown is None:
                continue
            start_s, end_s = shown
            colour, hatch, _ = DOINGS[stretch.doing]
            self.axes.barh(
                lane, end_s - start_s, left=start_s, height=_BAR, color=colour, hatch=hatch,
                edgecolor=look.VERMILION if hatch else "white", linewidth=0.0 if hatch else 0.6,
            )  # fmt: skip
            if stretch.iteration is not None:
                number = str(stretch.iteration)
                if self._fits(number, end_s - start_s, 6.0):
                    self.axes.text(
                        (start_s + end_s) / 2, lane, number, ha="center", va="center", fontsize=6.0
                    )

    def _draw_memory(self, machine: Machine) -> None:
        """Draw when a machine's checkpoint memory is there: always, unless the machine was lost."""
        lane, window = self.lanes.memory[machine.machine], self.window
        spans = [(window.start_s, window.end_s)]
        gap = self._without_memory(machine)
        if gap is not None:
            lost_s, back_s = gap
            spans = [(window.start_s, lost_s), (back_s, window.end_s)]
        for start_s, end_s in spans:
            shown = window.clipped(start_s, end_s)
            if shown is not None:
                self.axes.barh(
                    lane, shown[1] - shown[0], left=shown[0], height=_MEMORY_BAR, color=MEMORY, lw=0
                )

    def _without_memory(self, machine: Machine) -> tuple[float, float] | None:
        """Return from when to when a machine held no checkpoint; None if it always did.

        A machine that is lost loses it at once. Where all load from storage, what memory still
        holds is of other iterations, and every machine gives it up with the plan.
        """
        timeline = self.timeline
        lost = machine.failed and timeline.recovery.kind == "hardware"
        sources = {one.source.partition(":")[0] for one in timeline.retrievals}
        if not sources <= {"own_memory", "peer"}:
            back_ns = timeline.redundant_ns or timeline.end_ns
            given_up_ns = min(one.end_ns for one in timeline.retrievals)
            return 0.0 if lost else self._since(given_up_ns), self._since(back_ns)
        fetched = [
            one.end_ns
            for one in timeline.retrievals
            if one.machine == machine.machine and one.source.startswith("peer")
        ]
        return (0.0, self._since(max(fetched))) if lost and fetched else None

    def _draw_fetch(self, retrieval: Retrieval) -> None:
        """Draw an arrow from the holder's memory; the own part has its words beside it."""
        window = self.window
        source = None if retrieval.holder is None else self.lanes.memory.get(retrieval.holder)
        target = self.lanes.memory.get(retrieval.machine)
        at_s = self._since(retrieval.end_ns)
        if source is None or target is None or not window.start_s <= at_s <= window.end_s:
            return
        self.axes.annotate(
            "", (at_s, target), (self._since(retrieval.start_ns), source),
            arrowprops={
                "arrowstyle": "-|>", "color": look.BLUE, "linewidth": 1.0, "shrinkA": 0,
                "shrinkB": 0, "mutation_scale": 7, "linestyle": "-" if retrieval.own else ":",
            },
        )  # fmt: skip
        if retrieval.own:
            took = format_seconds((retrieval.end_ns - retrieval.start_ns) / _NS_PER_S)
            is_left = at_s - window.start_s < 0.25 * (window.end_s - window.start_s)
            self.axes.annotate(
                f"{format_bytes(retrieval.size_bytes)} in {took}", (at_s, (source + target) / 2),
                xytext=(4 if is_left else -3, 0), textcoords="offset points", fontsize=6.0,
                ha="left" if is_left else "right", va="center", color=look.BLUE,
            )  # fmt: skip

    def _draw_failures(self) -> None:
        for entry in of_kind(self.timeline.entries, Failed):
            failure, at_s = entry.event, self._since(entry.time_ns)
            if failure.machine is None or failure.machine not in self.lanes.top:
                continue
            if not self.window.start_s <= at_s <= self.window.end_s:
                continue
            place = self.lanes.top[failure.machine] + _ROW / 2
            if failure.rank is not None and failure.rank in self.lanes.rank:
                place = self.lanes.rank[failure.rank]
            self.axes.scatter(
                [at_s], [place], marker="X", s=34, color=look.VERMILION, zorder=5, lw=0
            )
            lost = failure.failure == "hardware"
            self.axes.annotate(
                "machine and its memory lost" if lost else "killed", (at_s, place), xytext=(6, 0),
                textcoords="offset points", fontsize=6.5, va="center", color=look.VERMILION,
            )  # fmt: skip

    def _draw_redundant(self) -> None:
        if self.timeline.redundant_ns is None:
            return
        at_s, window = self._since(self.timeline.redundant_ns), self.window
        if window.start_s <= at_s <= window.end_s:
            line = [1.0, self.lanes.height]
            self.axes.plot([at_s, at_s], line, color=MEMORY, linewidth=0.6, linestyle=":")
            is_right = window.end_s - at_s < 0.2 * (window.end_s - window.start_s)
            self.axes.annotate(
                "every replica is there", (at_s, 1.18), xytext=(-3 if is_right else 3, 0),
                textcoords="offset points", fontsize=6.0, ha="right" if is_right else "left",
                va="center", color=MEMORY,
            )  # fmt: skip


def _name(machine: Machine) -> str:
    if not machine.agents:
        return f"machine {machine.machine}"
    names = " → ".join(dict.fromkeys(machine.agents[-2:]))
    return f"machine {machine.machine}\n{names}"
