"""What a run came to, from its event log alone: recoveries with their parts, and the final state.

A recovery is one outage: from its start to the end of the next iteration that any rank finishes.
It starts (`Recovery.since`) with the failure, where one was injected and its time is known. Where
none was, or training had stood for `STOOD` iterations before it, it starts with the end of the last
iteration: nobody knows when in the next one something failed, so the outage holds the whole of what
was lost. A generation that ended no iteration failed while it started: it counts from there.
Its parts follow each other and add up to its total:

    detection        start -> detected
    interrupted      attempts that another failure ended, up to the last detection; mostly 0
    replacement      detected -> every lost machine replaced (0 if none was)
    planning         the rest up to the plan that says what to load
    retrieval        plan -> every rank's part is in its machine's memory
    restart          -> every rank has loaded it
    first_iteration  -> rank 0 has ended an iteration
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from castor_policy.events import Event, EventKind

PARTS = (
    "detection",
    "interrupted",
    "replacement",
    "planning",
    "retrieval",
    "restart",
    "first_iteration",
)

_NS_PER_S = 1_000_000_000

STOOD = 10
"""No iteration for so many times the usual one before a failure: training stood already."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """One outage and how it ended.

    Attributes:
        generation: the one that trained on; the last one tried if none did.
        generations: all that were tried.
        kind: "hardware" if a machine was lost or replaced, else what was detected.
        cause: what was detected, in order.
        machines: which machines failed, as injected; as detected where nothing was.
        sources: rank -> where its part came from.
        iteration: what all ranks resumed from; None if they did not.
        iterations_lost: iterations that had ended before and had to be done again.
        seconds: `PARTS` and "total"; None for a part that was not reached.
        culprits: who was held responsible, in order; empty: nobody saw what failed.
        seen: what others saw of it, a sentence each.
        since: what the outage is counted from: "failure", "last_iteration", "start" (of the
            generation that failed) or, where the log has none of them, "detection".
    """

    generation: int
    generations: tuple[int, ...]
    kind: str
    cause: str
    machines: tuple[int, ...]
    sources: Mapping[int, str] = field(default_factory=dict)
    iteration: int | None = None
    iterations_lost: int | None = None
    seconds: Mapping[str, float | None] = field(default_factory=dict)
    culprits: tuple[Mapping[str, Any], ...] = ()
    seen: tuple[str, ...] = ()
    since: str = "failure"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it: keys of objects are strings."""
        document = asdict(self)
        return document | {"sources": {str(rank): s for rank, s in sorted(self.sources.items())}}


def recoveries(events: Sequence[Event]) -> list[Recovery]:
    """Return the recoveries of a run, in order, from its merged events."""
    log = _Log(events)
    found: list[Recovery] = []
    tried: list[int] = []
    detected = sorted({_generation(event) for event in log.of(EventKind.DETECTED)})
    for index, generation in enumerate(detected):
        tried.append(generation)
        last = index == len(detected) - 1
        if last or log.of(EventKind.ITERATION_ENDED, generation):
            found.append(_recovery(log, tuple(tried)))
            tried = []
    return found


def ranks_at_fault(recoveries: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Return the ranks held responsible for the last failure of a result document."""
    culprits = recoveries[-1]["culprits"] if recoveries else ()
    return tuple(one["rank"] for one in culprits if one["rank"] is not None)


def last_iteration(events: Iterable[Event]) -> int:
    """Return the newest iteration that any rank ended; 0 if none did."""
    return max(
        (_whole(e, "iteration") for e in events if e.kind == EventKind.ITERATION_ENDED), default=0
    )


def final_state(finals: Iterable[Mapping[str, Any]], ranks: int) -> tuple[int | None, str | None]:
    """Combine what the agents say of the final state: iteration and SHA-256 over all ranks.

    The hash is that of the ranks' hexadecimal digests, one after the other in rank order.

    Args:
        finals: each agent's {"iteration": i, "ranks": {rank: digest}}, or {rank: digest} with
            "iteration" beside the ranks.
        ranks: how many ranks there are.

    Returns:
        (None, None) while a rank is missing.

    Raises:
        ValueError: two agents disagree on the iteration or on a rank.
    """
    digests: dict[int, str] = {}
    iterations: set[int] = set()
    for final in finals:
        if final.get("iteration") is not None:
            iterations.add(int(final["iteration"]))
        own = final.get("ranks", {key: d for key, d in final.items() if str(key).isdigit()})
        for rank, digest in own.items():
            if digests.setdefault(int(rank), digest) != digest:
                raise ValueError(f"two agents disagree on the final state of rank {rank}")
    if len(iterations) > 1:
        raise ValueError(f"the ranks ended at different iterations: {sorted(iterations)}")
    if sorted(digests) != list(range(ranks)):
        return None, None
    joined = "".join(digests[rank] for rank in range(ranks))
    return next(iter(iterations), None), hashlib.sha256(joined.encode("ascii")).hexdigest()


class _Log:
    """Events by kind and generation."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._events: dict[EventKind, list[Event]] = {}
        for event in sorted(events, key=lambda event: event.time_ns):
            self._events.setdefault(event.kind, []).append(event)

    def of(self, kind: EventKind, generation: int | None = None) -> list[Event]:
        """Return the events of a kind, by time; of one generation if given."""
        return [
            event
            for event in self._events.get(kind, ())
            if generation is None or _generation(event) == generation
        ]


def _recovery(log: _Log, tried: tuple[int, ...]) -> Recovery:
    first, last = tried[0], tried[-1]
    seen = [event for one in tried for event in log.of(EventKind.DETECTED, one)]
    failures = _failures(log, tried)
    # What a machine fetches for another's redundancy is no source that a rank was loaded from.
    own = [event for event in log.of(EventKind.RETRIEVED, last) if event.fields.get("own", True)]
    retrieved = _first_by_rank(own)
    resumed = _first_by_rank(log.of(EventKind.RESUMED, last))
    iteration = _whole(next(iter(resumed.values())), "iteration") if resumed else None
    lost = None if iteration is None else max(0, _reached(log, first) - iteration)
    replaced = [event for one in tried for event in log.of(EventKind.REPLACED, one)]
    hardware = replaced or any(event.fields.get("failure") == "hardware" for event in failures)
    start_ns, since = _start(log, first, failures)
    return Recovery(
        generation=last,
        generations=tried,
        kind="hardware" if hardware else str(seen[0].fields.get("failure", "")),
        cause="; ".join(dict.fromkeys(str(event.fields.get("cause", "")) for event in seen)),
        machines=_machines(failures) or _machines(seen),
        culprits=_culprits(seen),
        seen=_seen_by_others(seen),
        sources={rank: str(e.fields.get("source", "")) for rank, e in sorted(retrieved.items())},
        iteration=iteration,
        iterations_lost=lost,
        seconds=_seconds(log, tried, start_ns, retrieved, resumed),
        since=since,
    )


def _culprits(detected: Iterable[Event]) -> tuple[dict[str, Any], ...]:
    """Return who was named: {"machine", "rank", "agent", "how", "cause"}."""
    keys = ("machine", "rank", "agent", "how", "cause")
    named = [e for e in detected if e.fields.get("machine") is not None]
    found = [{key: event.fields.get(key) for key in keys} for event in named]
    return tuple(one for index, one in enumerate(found) if one not in found[:index])


def _seen_by_others(detected: Iterable[Event]) -> tuple[str, ...]:
    told: dict[str, None] = {}
    for event in detected:
        seen = event.fields.get("seen")
        told.update(dict.fromkeys(map(str, seen if isinstance(seen, list) else ())))
    return tuple(told)


def _start(log: _Log, generation: int, failures: Sequence[Event]) -> tuple[int, str]:
    """Return when the outage that led to `generation` began, and what tells it."""
    detected_ns = log.of(EventKind.DETECTED, generation)[0].time_ns

    def before(kind: EventKind) -> list[Event]:
        return [
            event
            for event in log.of(kind)
            if _generation(event) < generation and event.time_ns <= detected_ns
        ]

    failed_ns = min((event.time_ns for event in failures), default=None)
    ended = before(EventKind.ITERATION_ENDED)
    begun = [*before(EventKind.TRAINER_STARTED), *before(EventKind.RESUMED)]
    newest = max(map(_generation, [*ended, *begun]), default=0)
    ended = [event for event in ended if _generation(event) == newest]
    begun = [event for event in begun if _generation(event) == newest]
    stopped_ns = max((event.time_ns for event in ended or begun), default=None)
    if stopped_ns is None:
        return (detected_ns, "detection") if failed_ns is None else (failed_ns, "failure")
    usual_ns = _usual_ns(ended)
    stood = usual_ns is not None and (failed_ns or 0) - stopped_ns > STOOD * usual_ns
    if failed_ns is not None and not stood:
        return failed_ns, "failure"
    return stopped_ns, "last_iteration" if ended else "start"


def _usual_ns(ended: Sequence[Event]) -> float | None:
    """Return the mean time of a generation's iterations; None if it ended fewer than two."""
    if not ended:
        return None
    first, last = ended[0], ended[-1]
    iterations = _whole(last, "iteration") - _whole(first, "iteration")
    return (last.time_ns - first.time_ns) / iterations if iterations > 0 else None


def _reached(log: _Log, generation: int) -> int:
    """Return the last iteration of the training that ended with `generation`."""
    before = [e for e in log.of(EventKind.ITERATION_ENDED) if _generation(e) < generation]
    newest = max(map(_generation, before), default=0)
    return last_iteration(e for e in before if _generation(e) == newest)


def _failures(log: _Log, tried: tuple[int, ...]) -> list[Event]:
    """Return the injected failures of this outage.

    All since the training before it, up to its last detection. A store that is away stops no
    trainer, nor does a standby that dies (it fills no machine), a link that is slow, or one that
    was whole again before anything was detected.
    """
    first_ns = min(event.time_ns for event in log.of(EventKind.DETECTED, tried[0]))
    until_ns = max(event.time_ns for one in tried for event in log.of(EventKind.DETECTED, one))
    trained = [
        event.time_ns for event in log.of(EventKind.DETECTED) if _generation(event) < tried[0]
    ]
    since_ns = max(trained, default=-1)
    return [
        event
        for event in log.of(EventKind.FAILURE)
        if since_ns < event.time_ns <= until_ns
        and event.fields.get("machine") is not None
        and not _harmless(event, first_ns)
    ]


def _harmless(failure: Event, detected_ns: int) -> bool:
    if str(failure.fields.get("target", "")).startswith("slow:"):
        return True
    outage_s = failure.fields.get("outage_s")
    if not isinstance(outage_s, int | float):
        return False
    return failure.time_ns + round(outage_s * _NS_PER_S) < detected_ns


def _seconds(
    log: _Log,
    tried: tuple[int, ...],
    start_ns: int,
    retrieved: Mapping[int, Event],
    resumed: Mapping[int, Event],
) -> dict[str, float | None]:
    last = tried[-1]
    first_detected = _detected_ns(log, tried[0])
    detected_ns = max(first_detected, _detected_ns(log, last))
    replaced = [event.time_ns for event in log.of(EventKind.REPLACED, last)]
    instants: list[int | None] = [
        first_detected,
        detected_ns,
        max(replaced, default=detected_ns),
        _planned_ns(log, last),
        max((event.time_ns for event in retrieved.values()), default=None),
        max((event.time_ns for event in resumed.values()), default=None),
        next((e.time_ns for e in log.of(EventKind.ITERATION_ENDED, last) if _is_rank_0(e)), None),
    ]
    if instants[4] is None and resumed:
        instants[4] = instants[3]  # from scratch or from storage: nothing to fetch from memory
    seconds: dict[str, float | None] = {}
    now_ns = start_ns
    for part, instant in zip(PARTS, instants, strict=True):
        if instant is None:
            seconds[part] = None
            continue
        # Ranks overtake each other: a part ends no earlier than the one before it.
        seconds[part] = max(0, instant - now_ns) / _NS_PER_S
        now_ns = max(now_ns, instant)
    done = instants[-1]
    seconds["total"] = None if done is None else (max(now_ns, done) - start_ns) / _NS_PER_S
    return seconds


def _detected_ns(log: _Log, generation: int) -> int:
    """Return when it was known what had failed.

    A lost machine shows twice: its peers' trainers fail, and later its lease expires. It counts
    from then, because nothing could be done about it before.
    """
    events = log.of(EventKind.DETECTED, generation)
    lost = [event.time_ns for event in events if event.fields.get("failure") == "hardware"]
    return max(lost, default=events[0].time_ns)


def _planned_ns(log: _Log, generation: int) -> int | None:
    """Return when it was decided what to load; the plan may first have been to gather."""
    planned = log.of(EventKind.PLANNED, generation)
    loads = [e.time_ns for e in planned if e.fields.get("phase", "load") == "load"]
    return loads[-1] if loads else None


def _is_rank_0(event: Event) -> bool:
    return event.fields.get("rank") == 0


def _first_by_rank(events: Iterable[Event]) -> dict[int, Event]:
    """Return each rank's first event: a replica fetched later restores redundancy, no more."""
    first: dict[int, Event] = {}
    for event in events:
        first.setdefault(_whole(event, "rank"), event)
    return first


def _machines(events: Iterable[Event]) -> tuple[int, ...]:
    named = (event.fields.get("machine") for event in events)
    return tuple(sorted({machine for machine in named if isinstance(machine, int)}))


def _generation(event: Event) -> int:
    return _whole(event, "generation")


def _whole(event: Event, name: str) -> int:
    value = event.fields.get(name)
    return value if isinstance(value, int) else -1
