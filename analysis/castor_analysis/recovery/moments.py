"""One real recovery in words: when, who, what. The same as the picture, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Final

from castor_analysis.recovery.timeline import Doing, RecoveryTimeline, Retrieval, in_short
from castor_configs.readable import format_bytes, format_seconds
from castor_records.events import failures as f
from castor_records.events import storing as s
from castor_records.events.event import Event, machine_of

_NS_PER_S: Final = 1e9
_FETCHES_MAX: Final = 12
"""Fetches told one by one; of more, only how many there were."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What happened `since_s` to `until_s` after the failure, and to whom."""

    since_s: float
    until_s: float
    who: str
    what: str


def moments(timeline: RecoveryTimeline) -> list[Moment]:
    """Return what happened in a recovery, by time; what all did alike is one moment."""
    found = [*_events(timeline), *_parts_found(timeline), *_trainers(timeline)]
    if timeline.redundant_ns is not None:
        at_s = _since(timeline, timeline.redundant_ns)
        found.append(Moment(at_s, at_s, "all machines", "every replica is there"))
    return sorted(found, key=lambda moment: (moment.since_s, moment.until_s))


def _since(timeline: RecoveryTimeline, time_ns: int) -> float:
    return (time_ns - timeline.start_ns) / _NS_PER_S


@singledispatch
def _words(event: Event) -> str | None:  # noqa: ARG001 - those below say which are told
    return None


@_words.register
def _(event: f.Failed) -> str:
    lost = event.failure == "hardware"
    of = "the machine and its memory are lost" if lost else "its process is killed or stopped"
    return f"FAILURE {event.target}: {of}"


@_words.register
def _(event: f.Detected) -> str:
    return f"detected: {in_short(event.cause or '')}"


@_words.register
def _(event: f.Replaced) -> str:
    return f"is filled by {event.agent} from now on"


@_words.register
def _(event: f.Planned) -> str:
    tier = event.tier.replace("_", " ")
    return f"plan of generation {event.generation}: load iteration {event.iteration}, {tier}"


@_words.register
def _(event: f.Degraded) -> str:  # noqa: ARG001 - whose moment it is says which machine
    return "trains while its replicas are still fetched (degraded)"


@_words.register
def _(event: f.Corrupt) -> str:
    return f"its copy of rank {event.rank} is damaged: next source"


@_words.register
def _(event: s.RootElected) -> str:
    return f"{event.agent} is root, term {event.term}"


@_words.register
def _(event: s.StoreLost) -> str:
    return f"{event.agent} does not reach the store"


@_words.register
def _(event: s.StoreBack) -> str:
    return f"{event.agent} reaches the store again"


def _events(timeline: RecoveryTimeline) -> Iterator[Moment]:
    for entry in timeline.entries:
        words = _words(entry.event)
        if words is not None:
            at_s = _since(timeline, entry.time_ns)
            yield Moment(at_s, at_s, _who(entry.event), words)


def _who(event: Event) -> str:
    machine = machine_of(event)
    if machine is not None:
        return f"machine {machine}"
    return "store" if isinstance(event, f.Failed) and event.target == "store" else "root"


def _parts_found(timeline: RecoveryTimeline) -> Iterator[Moment]:
    by_source: dict[str, list[Retrieval]] = {}
    for one in timeline.retrievals:
        by_source.setdefault(one.source.partition(":")[0], []).append(one)
    for source, several in sorted(by_source.items()):
        if source == "peer":
            yield from _fetches(timeline, several)
            continue
        words = {
            "own_memory": "own part checked and offered from own memory",
            "storage": "own part offered from persistent storage",
            "scratch": "nothing to load: from the start",
        }.get(source, source)
        yield Moment(
            _since(timeline, several[0].end_ns),
            _since(timeline, several[-1].end_ns),
            _ranks([one.rank for one in several]),
            words,
        )


def _fetches(timeline: RecoveryTimeline, fetches: Sequence[Retrieval]) -> Iterator[Moment]:
    if len(fetches) > _FETCHES_MAX:
        size = format_bytes(sum(one.size_bytes for one in fetches))
        yield Moment(
            _since(timeline, min(one.start_ns for one in fetches)),
            _since(timeline, max(one.end_ns for one in fetches)),
            f"{len({one.machine for one in fetches})} machines",
            f"{len(fetches)} parts fetched from peers, {size} in all",
        )
        return
    for one in fetches:
        took = format_seconds((one.end_ns - one.start_ns) / _NS_PER_S)
        kept = "" if one.own else ", a replica for another"
        yield Moment(
            _since(timeline, one.start_ns),
            _since(timeline, one.end_ns),
            f"machine {one.machine}",
            f"fetches rank {one.rank} from {one.source.partition(':')[2]}: "
            f"{format_bytes(one.size_bytes)} in {took}{kept}",
        )


def _trainers(timeline: RecoveryTimeline) -> Iterator[Moment]:
    """Return what the trainers did last: those of earlier attempts are in the detections."""
    told = {
        Doing.STARTING: "forked: builds model and engine",
        Doing.JOINING: "stays, or is a spare: meets the others",
        Doing.LOADING: "checks and loads its part",
    }
    trainers = [trainer for machine in timeline.machines for trainer in machine.trainers]
    for doing, words in told.items():
        last = [
            (trainer.rank, [s for s in trainer.stretches if s.doing == doing])
            for trainer in trainers
        ]
        stretches = [(rank, found[-1]) for rank, found in last if found]
        if stretches:
            yield Moment(
                _since(timeline, min(s.start_ns for _, s in stretches)),
                _since(timeline, max(s.end_ns for _, s in stretches)),
                _ranks([rank for rank, _ in stretches]),
                words,
            )
    following = None if timeline.recovery.iteration is None else timeline.recovery.iteration + 1
    firsts = [
        (trainer.rank, stretch)
        for trainer in trainers
        for stretch in trainer.stretches
        if stretch.doing == Doing.ITERATION
        and stretch.iteration == following
        and stretch.end_ns > timeline.start_ns
    ]
    if firsts:
        yield Moment(
            _since(timeline, min(s.start_ns for _, s in firsts)),
            _since(timeline, max(s.end_ns for _, s in firsts)),
            _ranks([rank for rank, _ in firsts]),
            f"iteration {following}: training goes on",
        )


def _ranks(ranks: Sequence[int]) -> str:
    ordered = sorted(ranks)
    if len(ordered) == 1:
        return f"rank {ordered[0]}"
    if ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"ranks {ordered[0]}-{ordered[-1]}"
    shown = ",".join(map(str, ordered[:6]))
    return f"ranks {shown}{',...' if len(ordered) > 6 else ''}"
