"""A whole real run as a Chrome trace for Perfetto: a process a machine, a thread a trainer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import singledispatch
from typing import Any, Final

from castor_analysis.pictures.tracks import chrome_trace, complete, whole_us
from castor_analysis.recovery.timeline import Doing, RecoveryTimeline, in_short, read_recoveries
from castor_records.events import failures as f
from castor_records.events import storing as s
from castor_records.events.event import Entry, Event, machine_of, of_kind
from castor_records.events.training import CheckpointCompleted, IterationEnded

_JOB: Final = 1
_MEMORY: Final = 1_000_000
"""Thread of a machine's checkpoint memory; ranks have their own numbers, twice."""
_CHECKPOINTS: Final = 500_000


@singledispatch
def _label(event: Event) -> str | None:  # noqa: ARG001 - those below say which are shown
    return None


@_label.register
def _(event: f.Failed) -> str:
    return f"failure: {event.target}"


@_label.register
def _(event: f.Detected) -> str:  # noqa: ARG001 - its cause is too long for a label
    return "detected"


@_label.register
def _(event: f.Drained) -> str:
    return f"{event.agent} is drained"


@_label.register
def _(event: f.Replaced) -> str:
    return f"filled by {event.agent}"


@_label.register
def _(event: f.Planned) -> str:
    loads = f"generation {event.generation} loads iteration {event.iteration}, {event.tier}"
    return f"plan: {loads}"


@_label.register
def _(event: f.Degraded) -> str:  # noqa: ARG001 - it lies on the machine's own track
    return "trains degraded: replicas are still fetched"


@_label.register
def _(event: f.Redundant) -> str:  # noqa: ARG001 - it lies on the machine's own track
    return "every replica is there"


@_label.register
def _(event: f.Corrupt) -> str:
    return f"damaged: rank {event.rank}, iteration {event.iteration}"


@_label.register
def _(event: s.RootElected) -> str:
    return f"{event.agent} is root"


@_label.register
def _(event: s.StoreLost) -> str:
    return f"{event.agent} does not reach the store"


@_label.register
def _(event: s.StoreBack) -> str:
    return f"{event.agent} reaches the store"


@_label.register
def _(event: s.Persisted) -> str:
    return f"iteration {event.iteration} is persistent"


def run_to_chrome_trace(entries: Iterable[Entry[Event]]) -> dict[str, Any]:
    """Return a real run in the Trace Event Format, as an object that `json.dumps` takes.

    Args:
        entries: the merged log of the launcher and all agents.

    Raises:
        ValueError: it is no real run's log.
    """
    ordered = sorted(entries, key=lambda entry: entry.time_ns)
    recoveries = read_recoveries(ordered)
    started = next(of_kind(ordered, f.RunStarted)).event
    machines, ranks = started.machines or 0, started.ranks or 0
    per_machine = ranks // machines
    records = [*_named(machines, per_machine)]
    for recovery in recoveries:
        records += _phases(recovery)
        records += _start_ups(recovery)
        records += _transfers(recovery)
    records += _work(ordered, per_machine)
    records += _instants(ordered)
    return chrome_trace(records)


def _process(machine: int) -> int:
    return _JOB + 1 + machine


def _named(machines: int, per_machine: int) -> Iterator[dict[str, Any]]:
    def name(what: str, process: int, thread: int, label: str) -> dict[str, Any]:
        return {"ph": "M", "name": what, "pid": process, "tid": thread, "args": {"name": label}}

    yield name("process_name", _JOB, 0, "job")
    yield name("thread_name", _JOB, _JOB, "recoveries")
    for machine in range(machines):
        process = _process(machine)
        yield name("process_name", process, 0, f"machine {machine}")
        for rank in range(machine * per_machine, (machine + 1) * per_machine):
            yield name("thread_name", process, rank + 1, f"rank {rank}")
            yield name("thread_name", process, _CHECKPOINTS + rank, f"rank {rank} checkpoints")
        yield name("thread_name", process, _MEMORY, "checkpoint memory")


def _phases(timeline: RecoveryTimeline) -> Iterator[dict[str, Any]]:
    recovery = timeline.recovery
    about = {
        "generation": recovery.generation,
        "iteration": recovery.iteration,
        "iterations_lost": recovery.iterations_lost,
        "cause": in_short(recovery.cause),
    }
    name = f"recovery {recovery.generation}: {recovery.kind}"
    yield complete(_JOB, _JOB, name, timeline.start_ns, timeline.end_ns, about)
    for span in timeline.spans:
        yield complete(_JOB, _JOB, span.phase.replace("_", " "), span.start_ns, span.end_ns, {})


def _start_ups(timeline: RecoveryTimeline) -> Iterator[dict[str, Any]]:
    for machine in timeline.machines:
        for trainer in machine.trainers:
            for stretch in trainer.stretches:
                if stretch.doing not in (Doing.ITERATION, Doing.REDONE):
                    name = stretch.doing.replace("_", " ")
                    process = _process(machine.machine)
                    yield complete(
                        process, trainer.rank + 1, name, stretch.start_ns, stretch.end_ns, {}
                    )


def _transfers(timeline: RecoveryTimeline) -> Iterator[dict[str, Any]]:
    for one in timeline.retrievals:
        yield complete(
            _process(one.machine),
            _MEMORY,
            f"rank {one.rank} from {one.source.replace('_', ' ')}",
            one.start_ns,
            one.end_ns,
            {"bytes": one.size_bytes, "own": one.own},
        )


def _work(entries: Sequence[Entry[Event]], per_machine: int) -> Iterator[dict[str, Any]]:
    threads = {IterationEnded: 1, CheckpointCompleted: _CHECKPOINTS}
    for entry in entries:
        event = entry.event
        if not isinstance(event, IterationEnded | CheckpointCompleted):
            continue
        told = event.fields()
        yield complete(
            _process(event.rank // per_machine),
            threads[type(event)] + event.rank,
            f"iteration {event.iteration}",
            entry.time_ns - round((event.seconds or 0.0) * 1e9),
            entry.time_ns,
            {name: told[name] for name in ("loss", "blocked_s", "sent_bytes") if name in told},
        )
        if event.rank == 0 and isinstance(event, IterationEnded):
            yield {
                "ph": "C",
                "name": "iterations",
                "pid": _JOB,
                "ts": whole_us(entry.time_ns),
                "args": {"iterations": event.iteration},
            }


def _instants(entries: Sequence[Entry[Event]]) -> Iterator[dict[str, Any]]:
    for entry in entries:
        label = _label(entry.event)
        if label is None:
            continue
        machine = machine_of(entry.event)
        yield {
            "ph": "i",
            "s": "g" if isinstance(entry.event, f.Failed) else "t",
            "name": label,
            "pid": _JOB if machine is None else _process(machine),
            "tid": _JOB if machine is None else _MEMORY,
            "ts": whole_us(entry.time_ns),
            "args": entry.event.fields(),
        }
