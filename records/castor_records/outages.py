"""A run as training and the outages between: one form for simulated and for real logs.

In a simulated log every event is the job's: "resumed" once a recovery. In a real one every rank and
every machine writes its own, a generation may end before it has resumed, and the store or a standby
may fail without any harm to training: there the outages are the `recoveries`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from castor_records.events.event import Entry, Event, of_kind
from castor_records.events.failures import (
    Failed,
    Planned,
    Replaced,
    Resumed,
    Retrieved,
    RunEnded,
    RunStarted,
    Serialised,
)
from castor_records.events.training import IterationEnded
from castor_records.phases import Phase, Span
from castor_records.recoveries import Recovery, last_iteration, recoveries

_IN_MEMORY = ("own_memory", "peer")


@dataclass(frozen=True, slots=True)
class Outage:
    """From what stopped training until training goes on.

    Attributes:
        start_ns: its beginning: the first failure, if it is known when that was.
        end_ns: when training resumed, or the run ended.
        failures: the first one and those that struck before the end; empty: nothing was injected.
        spans: its phases; where another failure strikes a simulated job they begin anew.
        tier: what was loaded ("own_memory", "peer", "storage", "scratch"); None: the run ended.
        iteration: where training went on; None: the run ended.
        lost_progress_ns: training time that has to be done again.
    """

    start_ns: int
    end_ns: int
    failures: tuple[Entry[Failed], ...]
    spans: tuple[Span, ...]
    tier: str | None
    iteration: int | None
    lost_progress_ns: int


@dataclass(frozen=True, slots=True)
class Course:
    """What became of a job from the start of its run to the end of its log.

    Attributes:
        begun_ns: when training began; None: it never did.
        iteration: the one that it began with.
        outages: in order.
        end_ns: time of the log's last event.
        end_iteration: what the run came to.
    """

    begun_ns: int | None
    iteration: int
    outages: tuple[Outage, ...]
    end_ns: int
    end_iteration: int


def is_measured(entries: Sequence[Entry[Event]]) -> bool:
    """Whether a log in order of time is a real run's, not the simulator's."""
    first = entries[0].event if entries else None
    return isinstance(first, RunStarted) and first.is_measured


def course_of(entries: Iterable[Entry[Event]]) -> Course:
    """Follow a log from start to end; kinds that say nothing about outages are passed over.

    Args:
        entries: of one run, simulated or real, in order of time.
    """
    log = list(entries)
    return _measured(log) if is_measured(log) else _simulated(log)


# ---- a simulated log ---------------------------------------------------------------------------


@dataclass(slots=True)
class _Open:
    """An outage that has not ended yet; a phase is closed by the event that opens the next."""

    start_ns: int
    phase: Phase
    since_ns: int
    failures: list[Entry[Failed]] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    def enter(self, phase: Phase, now_ns: int) -> None:
        if now_ns > self.since_ns:
            self.spans.append(Span(self.phase, self.since_ns, now_ns))
        self.phase, self.since_ns = phase, now_ns

    def closed(self, now_ns: int, resumed: Resumed | None) -> Outage:
        self.enter(self.phase, now_ns)
        return Outage(
            self.start_ns,
            now_ns,
            tuple(self.failures),
            tuple(self.spans),
            None if resumed is None else resumed.tier,
            None if resumed is None else resumed.iteration,
            0 if resumed is None else resumed.lost_progress_ns or 0,
        )


def _simulated(log: Sequence[Entry[Event]]) -> Course:
    found: list[Outage] = []
    now: _Open | None = None
    for entry in log:
        at_ns = entry.time_ns
        if isinstance(entry.event, Failed):
            now = now or _Open(at_ns, Phase.DETECTION, at_ns)
            now.enter(Phase.DETECTION, at_ns)
            now.failures.append(Entry(at_ns, entry.event))
        elif now is not None and isinstance(entry.event, Resumed):
            found.append(now.closed(at_ns, entry.event))
            now = None
        elif now is not None and (phase := _entered(entry.event)) is not None:
            now.enter(phase, at_ns)
    end_ns = max((entry.time_ns for entry in log), default=0)
    if now is not None:
        found.append(now.closed(end_ns, None))
    ended = [entry.event.iteration for entry in of_kind(log, RunEnded)]
    return Course(0, 0, tuple(found), end_ns, ended[-1] if ended else 0)


def _entered(event: Event) -> Phase | None:
    """Return the phase that an event of a simulated outage begins."""
    match event:
        case Planned(tier=tier):
            return Phase.SERIALISATION if tier in _IN_MEMORY else Phase.REPLACEMENT
        case Serialised():
            return Phase.REPLACEMENT
        case Replaced():
            return Phase.RETRIEVAL
        case Retrieved():
            return Phase.RESTART
    return None


# ---- a real log --------------------------------------------------------------------------------


def _measured(log: Sequence[Entry[Event]]) -> Course:
    end_ns = log[-1].time_ns
    resumed = list(of_kind(log, Resumed))
    if not resumed:
        return Course(None, 0, (), end_ns, 0)
    first = [one for one in resumed if one.event.generation == resumed[0].event.generation]
    return Course(
        first[-1].time_ns,
        first[-1].event.iteration,
        tuple(_outage(log, recovery) for recovery in recoveries(log)),
        end_ns,
        last_iteration(log),
    )


def _outage(log: Sequence[Entry[Event]], recovery: Recovery) -> Outage:
    seconds = recovery.seconds
    spans = tuple(one for one in recovery.spans() if one.phase != Phase.FIRST_ITERATION)
    reached_ns = spans[-1].end_ns if spans else recovery.start_ns
    end_ns = reached_ns
    if seconds[Phase.RESTART] is None:
        end_ns = log[-1].time_ns
        unreached = next(phase for phase, took_s in seconds.items() if took_s is None)
        spans = (*spans, Span(unreached, reached_ns, end_ns))
    return Outage(
        recovery.start_ns,
        end_ns,
        recovery.failures,
        spans,
        None if recovery.iteration is None else recovery.tier,
        recovery.iteration,
        0 if recovery.iteration is None else _lost_progress_ns(log, recovery),
    )


def _lost_progress_ns(log: Sequence[Entry[Event]], recovery: Recovery) -> int:
    """Return the training time before the outage that is not in what was loaded.

    From the end of the loaded iteration, or from the start of the training that the failure ended
    where that iteration is older; what was trained before that counts there.
    """
    since_ns = 0
    for entry in log:
        if entry.time_ns > recovery.start_ns:
            break
        match entry.event:
            case Resumed():
                since_ns = entry.time_ns
            case IterationEnded(iteration=iteration) if iteration == recovery.iteration:
                since_ns = entry.time_ns
    return max(0, recovery.start_ns - since_ns)
