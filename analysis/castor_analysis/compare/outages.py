"""The outages of a real run, sorted by what outages are alike.

A kind is what failed, where the slowest part was loaded from, and whether a machine stood by. An
outage that is of no one kind is left out, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from castor_analysis.recovery.timeline import RecoveryTimeline, read_recoveries
from castor_records.events.event import Entry, Event, of_kind
from castor_records.events.failures import Detected, Failed, Replaced, Resumed
from castor_records.phases import Phase

STANDBY, REQUESTED, NOBODY = "standby", "requested", "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutageKind:
    """What outages are alike.

    Attributes:
        failure: as it was injected: "rank", "machine", "stop", ...
        source: the slowest source of any rank: "own_memory", "peer", "storage", "scratch".
        replacement: STANDBY, REQUESTED, or NOBODY where no machine was replaced.
    """

    failure: str
    source: str
    replacement: str = NOBODY

    def __str__(self) -> str:
        asked = ", machine asked for" if self.replacement == REQUESTED else ""
        return f"{self.failure} from {self.source}{asked}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutageSample:
    """One outage as it was measured: a sample of its kind.

    Attributes:
        run: name of the run's folder.
        generation: which of the run's: the one that trained on.
        kind: of it.
        by_lease: it was known by a lease that expired.
        seconds: the phases of `MEASURED` and "total".
        load_s: checking and loading of the slowest rank, part of the restart.
    """

    run: str
    generation: int
    kind: OutageKind
    by_lease: bool
    seconds: Mapping[str, float]
    load_s: float


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An outage that is neither fitted nor checked, and why."""

    run: str
    generation: int
    why: str


def outages(
    entries: Iterable[Entry[Event]], *, run: str = "", standbys: int = 0
) -> tuple[list[OutageSample], list[LeftOut]]:
    """Return the outages of a real run, and those that tell nothing of one kind.

    Args:
        entries: its merged log.
        run: its name.
        standbys: machines that stood by when it began; each serves once.

    Raises:
        ValueError: it is no real run's log.
    """
    found: list[OutageSample] = []
    left_out: list[LeftOut] = []
    used = 0
    for timeline in read_recoveries(entries):
        recovery = timeline.recovery
        replaced = list(of_kind(timeline.entries, Replaced))
        used += len(replaced)
        why = _why_not(timeline)
        if why:
            left_out.append(LeftOut(run, recovery.generation, why))
            continue
        replacement = NOBODY
        if replaced:
            replacement = STANDBY if used <= standbys else REQUESTED
        (failure,) = {_failure(event) for event in _failures(timeline)}
        found.append(
            OutageSample(
                run=run,
                generation=recovery.generation,
                kind=OutageKind(
                    failure=failure,
                    source=recovery.tier,
                    replacement=replacement,
                ),
                by_lease=any(
                    entry.event.how == "lease" for entry in of_kind(timeline.entries, Detected)
                ),
                seconds={name: value or 0.0 for name, value in recovery.seconds.items()},
                load_s=_load_s(timeline),
            )
        )
    return found, left_out


def _why_not(timeline: RecoveryTimeline) -> str:
    recovery = timeline.recovery
    if recovery.seconds["total"] is None:
        return "training did not go on"
    failures = _failures(timeline)
    if not failures:
        return "nothing was injected: when it failed is unknown"
    if recovery.seconds[Phase.INTERRUPTED]:
        return "another failure came before training went on"
    if len({_failure(event) for event in failures}) > 1:
        return "failures of several kinds at once"
    return ""


def _failures(timeline: RecoveryTimeline) -> list[Failed]:
    """Return what was injected up to the detection."""
    recovery = timeline.recovery
    known_ns = timeline.start_ns + round((recovery.seconds[Phase.DETECTION] or 0.0) * 1e9)
    return [
        entry.event
        for entry in of_kind(timeline.entries, Failed)
        if entry.time_ns <= known_ns and entry.event.machine in recovery.machines
    ]


def _failure(event: Failed) -> str:
    return (event.target or "").partition(":")[0]


def _load_s(timeline: RecoveryTimeline) -> float:
    last = timeline.recovery.generation
    resumed = (entry.event for entry in of_kind(timeline.entries, Resumed))
    return max((event.loading_s for event in resumed if event.generation == last), default=0.0)
