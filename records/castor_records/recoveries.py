"""The recoveries of a real run with their phases, from its event log alone.

A recovery is one outage: from its start to the end of the next iteration that any rank finishes.
It starts (`Recovery.since`) with the failure, where one was injected and its time is known. Where
none was, or training had stood for `STOOD` iterations before it, it starts with the end of the last
iteration: nobody knows when in the next one something failed, so the outage holds the whole of what
was lost. A generation that ended no iteration failed while it started: it counts from there.
Its phases follow each other and add up to its total:

    detection        start -> detected
    interrupted      attempts that another failure ended, up to the last detection; mostly 0
    replacement      detected -> every lost machine replaced (0 if none was)
    planning         the rest up to the plan that says what to load
    retrieval        plan -> every rank's part is in its machine's memory
    restart          -> every rank has loaded it
    first_iteration  -> rank 0 has ended an iteration
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from castor_records.events.event import E, Entry, Event, generation_of, of_kind, rank_of
from castor_records.events.failures import (
    JOINED,
    Detected,
    Failed,
    Planned,
    Replaced,
    Resumed,
    Retrieved,
)
from castor_records.events.training import IterationEnded
from castor_records.phases import MEASURED, Span

_NS_PER_S = 1_000_000_000

_SLOWEST_FIRST = ("scratch", "storage", "peer")

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
        seconds: the phases of `MEASURED` and "total"; None for a phase that was not reached.
        culprits: who was held responsible, in order; empty: nobody saw what failed.
        seen: what others saw of it, a sentence each.
        since: what the outage is counted from: "failure", "last_iteration", "start" (of the
            generation that failed) or, where the log has none of them, "detection".
        start_ns: when that was.
        failures: what was injected and led to it, by time.
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
    start_ns: int = 0
    failures: tuple[Entry[Failed], ...] = ()

    @property
    def tier(self) -> str:
        """The slowest tier that any rank loaded from."""
        used = {source.partition(":")[0] for source in self.sources.values()}
        return next((tier for tier in _SLOWEST_FIRST if tier in used), "own_memory")

    def spans(self) -> tuple[Span, ...]:
        """Return its phases without a gap, as far as it came; empty ones are left out."""
        found, now_ns = [], self.start_ns
        for phase in MEASURED:
            end_ns = now_ns + round((self.seconds[phase] or 0.0) * _NS_PER_S)
            if end_ns > now_ns:
                found.append(Span(phase, now_ns, end_ns))
            now_ns = end_ns
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Return it as result.json has it; what the event log says too is left out."""
        document = asdict(replace(self, failures=()))
        del document["start_ns"], document["failures"]
        return document | {"sources": {str(rank): s for rank, s in sorted(self.sources.items())}}

    @classmethod
    def of_json(cls, document: Mapping[str, Any]) -> Recovery:
        """Read one of result.json's recoveries; it does not say when they began.

        Raises:
            ValueError: it is none.
        """
        try:
            return cls(
                generation=document["generation"],
                generations=tuple(document["generations"]),
                kind=document["kind"],
                cause=document["cause"],
                machines=tuple(document["machines"]),
                sources={int(rank): source for rank, source in document["sources"].items()},
                iteration=document["iteration"],
                iterations_lost=document["iterations_lost"],
                seconds={
                    name: document["seconds"].get(name)
                    for name in (*(phase.value for phase in MEASURED), "total")
                },
                culprits=tuple(document.get("culprits", ())),
                seen=tuple(document.get("seen", ())),
                since=document.get("since", "failure"),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"recoveries: one is damaged: {error!r}") from error


def recoveries(entries: Sequence[Entry[Event]]) -> list[Recovery]:
    """Return the recoveries of a run, in order, from its merged events."""
    log = _Log(entries)
    found: list[Recovery] = []
    tried: list[int] = []
    detected = sorted({entry.event.generation or 0 for entry in log.of(Detected)})
    for index, generation in enumerate(detected):
        tried.append(generation)
        last = index == len(detected) - 1
        if last or log.of(IterationEnded, generation):
            found.append(_recovery(log, tuple(tried)))
            tried = []
    return found


def last_iteration(entries: Iterable[Entry[Event]]) -> int:
    """Return the newest iteration that any rank ended; 0 if none did."""
    return max((entry.event.iteration for entry in of_kind(entries, IterationEnded)), default=0)


class _Log:
    """Events by kind and generation."""

    def __init__(self, entries: Iterable[Entry[Event]]) -> None:
        self._entries: dict[type[Event], list[Entry[Event]]] = {}
        for entry in sorted(entries, key=lambda entry: entry.time_ns):
            self._entries.setdefault(type(entry.event), []).append(entry)

    def of(self, kind: type[E], generation: int | None = None) -> list[Entry[E]]:
        """Return the events of a kind, by time; of one generation if given."""
        return [
            entry
            for entry in of_kind(self._entries.get(kind, ()), kind)
            if generation is None or generation_of(entry.event) == generation
        ]


def _recovery(log: _Log, tried: tuple[int, ...]) -> Recovery:
    first, last = tried[0], tried[-1]
    seen = [entry.event for one in tried for entry in log.of(Detected, one)]
    failures = _failures(log, tried)
    # What a machine fetches for another's redundancy is no source that a rank was loaded from.
    own = [entry for entry in log.of(Retrieved, last) if entry.event.own is not False]
    retrieved = _first_by_rank(own)
    resumed = _first_by_rank(log.of(Resumed, last))
    iteration = next(iter(resumed.values())).event.iteration if resumed else None
    lost = None if iteration is None else max(0, _reached(log, first) - iteration)
    replaced = [entry for one in tried for entry in log.of(Replaced, one)]
    hardware = replaced or any(entry.event.failure == "hardware" for entry in failures)
    start_ns, since = _start(log, first, failures)
    return Recovery(
        generation=last,
        generations=tried,
        kind="hardware" if hardware else seen[0].failure or "",
        cause="; ".join(dict.fromkeys(event.cause or "" for event in seen)),
        machines=_machines(entry.event for entry in failures) or _machines(seen),
        culprits=_culprits(seen),
        seen=tuple(dict.fromkeys(told for event in seen for told in event.seen or ())),
        sources={rank: one.event.source or "" for rank, one in sorted(retrieved.items())},
        iteration=iteration,
        iterations_lost=lost,
        seconds=_seconds(log, tried, start_ns, retrieved, resumed),
        since=since,
        start_ns=start_ns,
        failures=tuple(failures),
    )


def _culprits(detected: Iterable[Detected]) -> tuple[dict[str, Any], ...]:
    """Return who was named: {"machine", "rank", "agent", "how", "cause"}."""
    found = [
        {"machine": e.machine, "rank": e.rank, "agent": e.agent, "how": e.how, "cause": e.cause}
        for e in detected
        if e.machine is not None
    ]
    return tuple(one for index, one in enumerate(found) if one not in found[:index])


def _start(log: _Log, generation: int, failures: Sequence[Entry[Failed]]) -> tuple[int, str]:
    """Return when the outage that led to `generation` began, and what tells it."""
    detected_ns = log.of(Detected, generation)[0].time_ns

    def before(kind: type[E]) -> list[tuple[int, int]]:
        """Return the generation and time of each event of a kind before."""
        return [
            (of, entry.time_ns)
            for entry in log.of(kind)
            if (of := generation_of(entry.event) or 0) < generation and entry.time_ns <= detected_ns
        ]

    failed_ns = min((entry.time_ns for entry in failures), default=None)
    ended = before(IterationEnded)
    begun = [one for kind in (*JOINED, Resumed) for one in before(kind)]
    newest = max((of for of, _ in [*ended, *begun]), default=0)
    ended_ns = [time_ns for of, time_ns in ended if of == newest]
    begun_ns = [time_ns for of, time_ns in begun if of == newest]
    stopped_ns = max(ended_ns or begun_ns, default=None)
    if stopped_ns is None:
        return (detected_ns, "detection") if failed_ns is None else (failed_ns, "failure")
    usual_ns = _usual_ns([e for e in log.of(IterationEnded, newest) if e.time_ns <= detected_ns])
    stood = usual_ns is not None and (failed_ns or 0) - stopped_ns > STOOD * usual_ns
    if failed_ns is not None and not stood:
        return failed_ns, "failure"
    return stopped_ns, "last_iteration" if ended_ns else "start"


def _usual_ns(ended: Sequence[Entry[IterationEnded]]) -> float | None:
    """Return the mean time of a generation's iterations; None if it ended fewer than two."""
    if not ended:
        return None
    first, last = ended[0], ended[-1]
    iterations = last.event.iteration - first.event.iteration
    return (last.time_ns - first.time_ns) / iterations if iterations > 0 else None


def _reached(log: _Log, generation: int) -> int:
    """Return the last iteration of the training that ended with `generation`."""
    before = [e for e in log.of(IterationEnded) if e.event.generation < generation]
    newest = max((e.event.generation for e in before), default=0)
    return last_iteration(e for e in before if e.event.generation == newest)


def _failures(log: _Log, tried: tuple[int, ...]) -> list[Entry[Failed]]:
    """Return the injected failures of this outage.

    All since the training before it, up to its last detection. A store that is away stops no
    trainer, nor does a standby that dies (it fills no machine), a link that is slow, or one that
    was whole again before anything was detected.
    """
    first_ns = min(entry.time_ns for entry in log.of(Detected, tried[0]))
    until_ns = max(entry.time_ns for one in tried for entry in log.of(Detected, one))
    trained = [e.time_ns for e in log.of(Detected) if (e.event.generation or 0) < tried[0]]
    since_ns = max(trained, default=-1)
    return [
        entry
        for entry in log.of(Failed)
        if since_ns < entry.time_ns <= until_ns
        and entry.event.machine is not None
        and not _is_harmless(entry, first_ns)
    ]


def _is_harmless(failure: Entry[Failed], detected_ns: int) -> bool:
    if (failure.event.target or "").startswith("slow:"):
        return True
    outage_s = failure.event.outage_s
    return outage_s is not None and failure.time_ns + round(outage_s * _NS_PER_S) < detected_ns


def _seconds(
    log: _Log,
    tried: tuple[int, ...],
    start_ns: int,
    retrieved: Mapping[int, Entry[Retrieved]],
    resumed: Mapping[int, Entry[Resumed]],
) -> dict[str, float | None]:
    last = tried[-1]
    first_detected = _detected_ns(log, tried[0])
    detected_ns = max(first_detected, _detected_ns(log, last))
    ended = [entry.time_ns for entry in log.of(IterationEnded, last) if entry.event.rank == 0]
    instants: list[int | None] = [
        first_detected,
        detected_ns,
        max((entry.time_ns for entry in log.of(Replaced, last)), default=detected_ns),
        # The last plan is the one that says what to load.
        max((entry.time_ns for entry in log.of(Planned, last)), default=None),
        max((entry.time_ns for entry in retrieved.values()), default=None),
        max((entry.time_ns for entry in resumed.values()), default=None),
        min(ended, default=None),
    ]
    if instants[4] is None and resumed:
        instants[4] = instants[3]  # from scratch or from storage: nothing to fetch from memory
    seconds: dict[str, float | None] = {}
    now_ns = start_ns
    for phase, instant in zip(MEASURED, instants, strict=True):
        if instant is None:
            seconds[phase.value] = None
            continue
        # Ranks overtake each other: a phase ends no earlier than the one before it.
        seconds[phase.value] = max(0, instant - now_ns) / _NS_PER_S
        now_ns = max(now_ns, instant)
    done = instants[-1]
    seconds["total"] = None if done is None else (max(now_ns, done) - start_ns) / _NS_PER_S
    return seconds


def _detected_ns(log: _Log, generation: int) -> int:
    """Return when it was known what had failed.

    A lost machine shows twice: its peers' trainers fail, and later its lease expires. It counts
    from then, because nothing could be done about it before.
    """
    entries = log.of(Detected, generation)
    lost = [entry.time_ns for entry in entries if entry.event.failure == "hardware"]
    return max(lost, default=entries[0].time_ns)


def _first_by_rank(entries: Iterable[Entry[E]]) -> dict[int, Entry[E]]:
    """Return each rank's first event: a replica fetched later restores redundancy, no more."""
    first: dict[int, Entry[E]] = {}
    for entry in entries:
        first.setdefault(rank_of(entry.event) or 0, entry)
    return first


def _machines(events: Iterable[Detected | Failed]) -> tuple[int, ...]:
    return tuple(sorted({event.machine for event in events if event.machine is not None}))
