"""What a real run's log comes to for the job as a whole, in the simulator's words.

In a simulated log every event is the job's: "resumed" once a recovery. In a real one every rank and
every machine writes its own, a generation may end before it has resumed, and the store or a standby
may fail without any harm to training. Told alike, one reader serves both (docs/formats.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Final

from castor_policy.events import Event, EventKind
from castor_runtime.launcher.run_result import Recovery, last_iteration, recoveries

_NS_PER_S: Final = 1_000_000_000


def is_measured(first: Event) -> bool:
    """Whether a log that begins with this event is a real run's, not the simulator's."""
    return first.kind == EventKind.RUN_STARTED and "ranks" in first.fields


def whole(event: Event, name: str) -> int:
    """Return a field that is an integer; -1 if it is missing or none."""
    value = event.fields.get(name)
    return value if isinstance(value, int) else -1


def events_of_the_job(events: Iterable[Event]) -> Iterator[Event]:
    """Yield a log's events as the simulator writes them; a simulated log as it is.

    A real run's start is "trainer_started" and the first "resumed"; each outage gives "failure",
    "planned" (when it was known what failed), "replaced", "retrieved" and "resumed", as far as it
    came; the log's end is "run_ended".

    Args:
        events: of one run, in order of time.
    """
    following = iter(events)
    first = next(following, None)
    if first is None:
        return
    if not is_measured(first):
        yield from chain([first], following)
        return
    yield from _told_alike([first, *following])


def outage_start_ns(events: Sequence[Event], recovery: Recovery) -> int:
    """Return when an outage began: when it was known what failed, less the time that this took."""
    seen = [
        event
        for event in events
        if event.kind == EventKind.DETECTED
        and whole(event, "generation") == recovery.generations[0]
    ]
    lost = [event.time_ns for event in seen if event.fields.get("failure") == "hardware"]
    known_ns = max(lost, default=seen[0].time_ns)
    return known_ns - round((recovery.seconds["detection"] or 0.0) * _NS_PER_S)


def _told_alike(events: Sequence[Event]) -> Iterator[Event]:
    yield events[0]
    yield Event(events[0].time_ns, EventKind.TRAINER_STARTED)
    resumed = [event for event in events if event.kind == EventKind.RESUMED]
    if not resumed:
        yield Event(events[-1].time_ns, EventKind.RUN_ENDED, {"iteration": 0})
        return
    first = [e for e in resumed if whole(e, "generation") == whole(resumed[0], "generation")]
    yield Event(
        first[-1].time_ns,
        EventKind.RESUMED,
        {"iteration": whole(first[-1], "iteration"), "tier": "scratch", "lost_progress_ns": 0},
    )
    for recovery in recoveries(events):
        yield from _outage(events, recovery)
    ended = {"iteration": last_iteration(events)}
    yield Event(events[-1].time_ns, EventKind.RUN_ENDED, ended)


def _outage(events: Sequence[Event], recovery: Recovery) -> Iterator[Event]:
    start_ns = outage_start_ns(events, recovery)
    now_ns = start_ns
    instants: dict[str, int | None] = {}
    for part, seconds in recovery.seconds.items():
        if part == "total":
            continue
        now_ns += round((seconds or 0.0) * _NS_PER_S)
        instants[part] = None if seconds is None else now_ns
    failed = {"failure": "hardware" if recovery.kind == "hardware" else "software"}
    for machine in recovery.machines or (None,):
        yield Event(start_ns, EventKind.FAILURE, {**failed, "machine": machine})
    known_ns = instants["interrupted"]
    if known_ns is not None:
        # Nothing is serialised: the wait for a replacement begins at once.
        yield Event(known_ns, EventKind.PLANNED, {"tier": "storage"})
    for part, kind in (("planning", EventKind.REPLACED), ("retrieval", EventKind.RETRIEVED)):
        at_ns = instants[part]
        if at_ns is not None:
            yield Event(at_ns, kind)
    at_ns = instants["restart"]
    if at_ns is not None:
        tier = _tier(recovery)
        lost_ns = _lost_progress_ns(events, recovery, start_ns)
        fields = {"iteration": recovery.iteration, "tier": tier, "lost_progress_ns": lost_ns}
        yield Event(at_ns, EventKind.RESUMED, fields)


def _tier(recovery: Recovery) -> str:
    """Return the slowest tier that any rank loaded from."""
    used = {source.partition(":")[0] for source in recovery.sources.values()}
    ladder = ("scratch", "storage", "peer")
    return next((tier for tier in ladder if tier in used), "own_memory")


def _lost_progress_ns(events: Sequence[Event], recovery: Recovery, start_ns: int) -> int:
    """Return the training time before the failure that is not in what was loaded.

    From the end of the loaded iteration, or from the start of the training that the failure ended
    where that iteration is older; what was trained before that counts there.
    """
    since_ns = 0
    for event in events:
        if event.time_ns > start_ns:
            break
        loaded = whole(event, "iteration") == recovery.iteration
        if event.kind == EventKind.RESUMED or (event.kind == EventKind.ITERATION_ENDED and loaded):
            since_ns = event.time_ns
    return max(0, start_ns - since_ns)
