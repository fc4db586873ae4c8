"""The outages of a real run, sorted by what outages are alike.

A kind is what failed, where the slowest part was loaded from, and whether a machine stood by. An
outage that is of no one kind is left out, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from castor_analysis.job_events import whole
from castor_analysis.recovery_timeline import RecoveryTimeline, read_recoveries
from castor_policy.events import Event, EventKind

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
class Outage:
    """One outage as it was measured.

    Attributes:
        run: name of the run's folder.
        generation: which of the run's: the one that trained on.
        kind: of it.
        by_lease: it was known by a lease that expired.
        seconds: the parts and "total".
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
    events: Iterable[Event], *, run: str = "", standbys: int = 0
) -> tuple[list[Outage], list[LeftOut]]:
    """Return the outages of a real run, and those that tell nothing of one kind.

    Args:
        events: its merged log.
        run: its name.
        standbys: machines that stood by when it began; each serves once.

    Raises:
        ValueError: it is no real run's log.
    """
    found: list[Outage] = []
    left_out: list[LeftOut] = []
    used = 0
    for timeline in read_recoveries(events):
        recovery = timeline.recovery
        replaced = [e for e in timeline.events if e.kind == EventKind.REPLACED]
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
            Outage(
                run=run,
                generation=recovery.generation,
                kind=OutageKind(
                    failure=failure,
                    source=slowest_source(recovery.sources.values()),
                    replacement=replacement,
                ),
                by_lease=any(e.fields.get("how") == "lease" for e in timeline.events),
                seconds={name: value or 0.0 for name, value in recovery.seconds.items()},
                load_s=_load_s(timeline),
            )
        )
    return found, left_out


def slowest_source(sources: Iterable[str]) -> str:
    """Return the last resort among the sources of all ranks, as the log names them."""
    used = {source.partition(":")[0] for source in sources}
    return next((one for one in ("scratch", "storage", "peer") if one in used), "own_memory")


def _why_not(timeline: RecoveryTimeline) -> str:
    recovery = timeline.recovery
    if recovery.seconds["total"] is None:
        return "training did not go on"
    failures = _failures(timeline)
    if not failures:
        return "nothing was injected: when it failed is unknown"
    if recovery.seconds["interrupted"]:
        return "another failure came before training went on"
    if len({_failure(event) for event in failures}) > 1:
        return "failures of several kinds at once"
    return ""


def _failures(timeline: RecoveryTimeline) -> list[Event]:
    """Return what was injected up to the detection."""
    known_ns = timeline.start_ns + round((timeline.recovery.seconds["detection"] or 0.0) * 1e9)
    return [
        event
        for event in timeline.events
        if event.kind == EventKind.FAILURE
        and event.time_ns <= known_ns
        and whole(event, "machine") in timeline.recovery.machines
    ]


def _failure(event: Event) -> str:
    return str(event.fields.get("target", "")).partition(":")[0]


def _load_s(timeline: RecoveryTimeline) -> float:
    def loading_s(event: Event) -> float:
        values: list[Any] = [event.fields.get(n) for n in ("verify", "restore", "storage")]
        return sum(float(value) for value in values if isinstance(value, int | float))

    last = timeline.recovery.generation
    resumed = [
        event
        for event in timeline.events
        if event.kind == EventKind.RESUMED and whole(event, "generation") == last
    ]
    return max(map(loading_s, resumed), default=0.0)
