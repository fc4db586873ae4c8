"""An outage's phases as one machine sees them, on its own steady clock.

`castor_records.recoveries` takes a recovery apart from the logs of all agents once they are merged.
One agent alone sees the plan change and its own trainers end, load and go on. So its phases are:

    detection        its last iteration ended -> the plan says that trainers stop
    interrupted      attempts that another failure ended; mostly 0
    replacement      -> every place of the plan is filled (0 if none was empty)
    planning         -> the plan says what to load
    retrieval        -> every part of its own ranks is in its memory
    restart          -> every rank of its own has loaded
    first_iteration  -> its first rank has ended an iteration
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from castor_policy.agents.plan import Phase as PlanPhase
from castor_policy.agents.plan import Plan
from castor_records.phases import MEASURED, Phase

HARDWARE, SOFTWARE = "hardware", "software"


@dataclass(frozen=True, slots=True)
class Outage:
    """One that has ended.

    Attributes:
        kind: "hardware" if another life of an agent fills a place than before, else "software".
        tier: the slowest that any rank loaded from.
        seconds: by phase, all of `MEASURED`.
    """

    kind: str
    tier: str
    seconds: Mapping[Phase, float]

    @property
    def lost_s(self) -> float:
        """Time in which nothing was trained: the first iteration is training again."""
        return sum(s for phase, s in self.seconds.items() if phase != Phase.FIRST_ITERATION)


@dataclass(slots=True)
class _Open:
    """Since when what is under way; None: it has not come so far."""

    start_s: float
    first_detected_s: float
    detected_s: float
    was_empty: bool = False
    reached_s: dict[Phase, float] = field(default_factory=dict)

    def again(self, now_s: float) -> None:
        """Begin anew: another failure has ended the attempt."""
        self.detected_s, self.was_empty = now_s, False
        self.reached_s.clear()

    def seconds(self, end_s: float) -> dict[Phase, float]:
        ends = {
            Phase.DETECTION: self.first_detected_s,
            Phase.INTERRUPTED: self.detected_s,
            **self.reached_s,
            Phase.FIRST_ITERATION: end_s,
        }
        found: dict[Phase, float] = {}
        now_s = self.start_s
        for phase in MEASURED:
            # Ranks overtake each other: a phase ends no earlier than the one before it.
            end_s = max(now_s, ends.get(phase, now_s))
            found[phase], now_s = end_s - now_s, end_s
        return found


class OutageClock:
    """Follows the plan and this machine's trainers; all times are the caller's steady clock."""

    def __init__(self) -> None:
        self._generation = 0
        self._last_s: float | None = None
        self._loaded: tuple[str, ...] = ()
        self._plan: Plan | None = None
        self._open: _Open | None = None

    def open_s(self, now_s: float) -> float:
        """Return for how long training has stood; 0 while it goes on."""
        return 0.0 if self._open is None else max(0.0, now_s - self._open.start_s)

    def plan(self, plan: Plan, now_s: float) -> None:
        """Take the plan in."""
        self._plan = plan
        if plan.is_over:
            self._open = None
            return
        if plan.generation > self._generation:
            self._generation = plan.generation
            if self._open is not None:
                self._open.again(now_s)
            elif self._last_s is not None:
                self._open = _Open(self._last_s, now_s, now_s)
        now = self._open
        if now is None:
            if plan.phase == PlanPhase.LOAD:
                self._loaded = plan.incarnations
            return
        if "" in plan.agents:
            now.was_empty = True
        elif now.was_empty:
            now.reached_s.setdefault(Phase.REPLACEMENT, now_s)
        if plan.phase == PlanPhase.LOAD:
            now.reached_s.setdefault(Phase.PLANNING, now_s)

    def retrieved(self, generation: int, now_s: float) -> None:
        """Take in that a part of an own rank is in memory."""
        self._reached(Phase.RETRIEVAL, generation, now_s)

    def resumed(self, generation: int, now_s: float) -> None:
        """Take in that a trainer has loaded."""
        self._reached(Phase.RESTART, generation, now_s)
        if self._open is None:
            self._last_s = now_s

    def ended(self, generation: int, now_s: float) -> Outage | None:
        """Take in that the first rank has ended an iteration; return the outage that it ends."""
        self._last_s = now_s
        now, plan = self._open, self._plan
        if now is None or plan is None or generation < self._generation:
            return None
        self._open = None
        kind = SOFTWARE if plan.incarnations == self._loaded else HARDWARE
        self._loaded = plan.incarnations
        return Outage(kind, plan.tier, now.seconds(now_s))

    def _reached(self, phase: Phase, generation: int, now_s: float) -> None:
        if self._open is not None and generation == self._generation:
            self._open.reached_s[phase] = now_s
