"""A whole real run as a Chrome trace for Perfetto: a process a machine, a thread a trainer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from castor_analysis.job_events import whole
from castor_analysis.recovery_timeline import Doing, RecoveryTimeline, in_short, read_recoveries
from castor_analysis.trace_tracks import chrome_trace, complete, whole_us
from castor_policy.events import Event, EventKind

_JOB: Final = 1
_MEMORY: Final = 1_000_000
"""Thread of a machine's checkpoint memory; ranks have their own numbers, twice."""
_CHECKPOINTS: Final = 500_000

_INSTANTS: Final = {
    EventKind.FAILURE: "failure: {target}",
    EventKind.DETECTED: "detected",
    EventKind.REPLACED: "filled by {agent}",
    EventKind.PLANNED: "plan: generation {generation} loads iteration {iteration}, {tier}",
    EventKind.REDUNDANT: "every replica is there",
    EventKind.ROOT_ELECTED: "{agent} is root",
    EventKind.STORE_LOST: "{agent} does not reach the store",
    EventKind.STORE_BACK: "{agent} reaches the store",
    EventKind.PERSISTED: "iteration {iteration} is persistent",
    EventKind.CORRUPT: "damaged: rank {rank}, iteration {iteration}",
}


def run_to_chrome_trace(events: Iterable[Event]) -> dict[str, Any]:
    """Return a real run in the Trace Event Format, as an object that `json.dumps` takes.

    Args:
        events: the merged log of the launcher and all agents.

    Raises:
        ValueError: it is no real run's log.
    """
    ordered = sorted(events, key=lambda event: event.time_ns)
    recoveries = read_recoveries(ordered)
    started = next(event for event in ordered if event.kind == EventKind.RUN_STARTED)
    machines, ranks = whole(started, "machines"), whole(started, "ranks")
    per_machine = ranks // machines
    records = [*_named(machines, per_machine)]
    for recovery in recoveries:
        records += _parts(recovery)
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


def _parts(timeline: RecoveryTimeline) -> Iterator[dict[str, Any]]:
    recovery = timeline.recovery
    about = {
        "generation": recovery.generation,
        "iteration": recovery.iteration,
        "iterations_lost": recovery.iterations_lost,
        "cause": in_short(recovery.cause),
    }
    name = f"recovery {recovery.generation}: {recovery.kind}"
    yield complete(_JOB, _JOB, name, timeline.start_ns, timeline.end_ns, about)
    for part in timeline.parts:
        yield complete(_JOB, _JOB, part.phase.replace("_", " "), part.start_ns, part.end_ns, {})


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


def _work(events: Sequence[Event], per_machine: int) -> Iterator[dict[str, Any]]:
    threads = {EventKind.ITERATION_ENDED: 1, EventKind.CHECKPOINT_COMPLETED: _CHECKPOINTS}
    for event in events:
        if event.kind not in threads:
            continue
        rank, iteration = whole(event, "rank"), whole(event, "iteration")
        seconds = event.fields.get("seconds")
        took_ns = round(seconds * 1e9) if isinstance(seconds, int | float) else 0
        yield complete(
            _process(rank // per_machine),
            threads[event.kind] + rank,
            f"iteration {iteration}",
            event.time_ns - took_ns,
            event.time_ns,
            {k: v for k, v in event.fields.items() if k in ("loss", "blocked_s", "sent_bytes")},
        )
        if rank == 0 and event.kind == EventKind.ITERATION_ENDED:
            yield {
                "ph": "C",
                "name": "iterations",
                "pid": _JOB,
                "ts": whole_us(event.time_ns),
                "args": {"iterations": iteration},
            }


def _instants(events: Sequence[Event]) -> Iterator[dict[str, Any]]:
    for event in events:
        template = _INSTANTS.get(event.kind)
        if template is None:
            continue
        machine = whole(event, "machine")
        yield {
            "ph": "i",
            "s": "g" if event.kind == EventKind.FAILURE else "t",
            "name": template.format_map({key: str(v) for key, v in event.fields.items()}),
            "pid": _JOB if machine < 0 else _process(machine),
            "tid": _JOB if machine < 0 else _MEMORY,
            "ts": whole_us(event.time_ns),
            "args": dict(event.fields),
        }
