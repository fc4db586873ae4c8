"""Event logs as a Chrome trace, which Perfetto (ui.perfetto.dev) opens: a process a strategy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from castor_analysis.pictures.tracks import chrome_trace, complete, whole_us
from castor_analysis.timeline import Timeline, read_timeline
from castor_records.events.event import Entry, Event

_PHASES, _FAILURES = 1, 2


def to_chrome_trace(event_logs: Mapping[str, Iterable[Entry[Event]]]) -> dict[str, Any]:
    """Return the logs in the Trace Event Format, as an object that `json.dumps` takes.

    Each log becomes a process with the job's phases as complete events, its failures as instants,
    and the iterations kept as a counter. Times are in microseconds, as the format wants them.

    Args:
        event_logs: the events of one run each, in order of time, by the name of the strategy.
    """
    events: list[dict[str, Any]] = []
    for process, (name, log) in enumerate(event_logs.items(), start=1):
        events.extend(_named(process, name))
        timeline = read_timeline(log)
        events.extend(_phases(process, timeline))
        events.extend(_failures(process, timeline))
        events.extend(_iterations(process, timeline))
    return chrome_trace(events)


def _named(process: int, name: str) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "name": "process_name", "pid": process, "args": {"name": name}}
    yield {"ph": "M", "name": "process_sort_index", "pid": process, "args": {"sort_index": process}}
    for thread, label in ((_PHASES, "job"), (_FAILURES, "failures")):
        yield {
            "ph": "M",
            "name": "thread_name",
            "pid": process,
            "tid": thread,
            "args": {"name": label},
        }


def _phases(process: int, timeline: Timeline) -> Iterator[dict[str, Any]]:
    outages = {span: outage for outage in timeline.outages for span in outage.spans}
    for span in timeline.spans:
        arguments: dict[str, object] = {}
        outage = outages.get(span)
        if outage is not None and outage.tier is not None:
            arguments = {"recovered_from": outage.tier, "iteration": outage.iteration}
        yield complete(
            process,
            _PHASES,
            span.phase.replace("_", " "),
            span.start_ns,
            span.end_ns,
            arguments,
            category="phase",
        )


def _failures(process: int, timeline: Timeline) -> Iterator[dict[str, Any]]:
    for failure in timeline.failures:
        yield {
            "ph": "i",
            "s": "t",
            "name": f"{failure.event.failure} failure",
            "cat": "failure",
            "pid": process,
            "tid": _FAILURES,
            "ts": whole_us(failure.time_ns),
            "args": {} if failure.event.machine is None else {"machine": failure.event.machine},
        }


def _iterations(process: int, timeline: Timeline) -> Iterator[dict[str, Any]]:
    for time_ns, iteration in timeline.iterations:
        yield {
            "ph": "C",
            "name": "iterations",
            "pid": process,
            "ts": whole_us(time_ns),
            "args": {"iterations": int(iteration)},
        }
