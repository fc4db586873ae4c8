"""The event log of a run that has ended, read as a measurement.

A log that is followed may have half a line at its end or where an agent was killed, and that is no
event. The merged log of a run that has ended is written whole: a line in it that is no event is
damage, and figures from the rest would say something else than what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from castor_configs.errors import InputError
from castor_policy.events import Event, EventKind, parse_line
from castor_runtime.launcher.run_folder import RunFolder

COLLECTIVE_COLUMNS: Final = ("op_bytes", "issued_ns", "waited_ns", "resumed_ns", "ended_ns")
"""Of a profile: a list each, one whole number for each of its `ops`."""

_TIMES: Final[Mapping[EventKind, tuple[str, ...]]] = {
    EventKind.ITERATION_ENDED: ("seconds", "idle_s", "train_busy_s"),
    EventKind.CHECKPOINT_COMPLETED: ("network_s", "sent_s", "captured_s", "commit_s"),
    EventKind.SPANS_PROFILED: ("deviation",),
}
_WHOLE: Final[Mapping[EventKind, tuple[str, ...]]] = {
    EventKind.ITERATION_ENDED: ("generation", "rank", "iteration"),
    EventKind.CHECKPOINT_COMPLETED: ("generation", "rank", "iteration", "sent_bytes"),
    EventKind.SPANS_PROFILED: ("generation", "rank", "iteration", "before_update_ns", "update_ns"),
}
_LISTS: Final[Mapping[EventKind, tuple[str, ...]]] = {
    EventKind.SPANS_PROFILED: COLLECTIVE_COLUMNS,
    EventKind.SCHEDULED: ("chunk_bytes", "chunk_spans"),
    EventKind.LINK_MEASURED: ("sizes_bytes", "times_ns"),
}


def refuse_twice(folders: Sequence[Path]) -> None:
    """Check that no run is given twice: it would weigh as two, or check itself.

    Raises:
        InputError: one is.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("names a run twice", key="RUN")


def events_of_run(folder: RunFolder) -> list[Event]:
    """Return the events of a run that has ended, in order of time.

    A field that is missing is no fault here: runs differ in what they log.

    Raises:
        InputError: there is no log, or a line of it is no event or has a figure that is none.
    """
    file = folder.events_file
    try:
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        raise InputError("has no events.jsonl: the log of the run", file=folder.path) from None
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            event = parse_line(line.decode("utf-8"))
            if event is not None:
                _check(event)
        except ValueError as error:
            raise InputError(
                f"is damaged: {error}; copy the log again, or leave the run out",
                file=file,
                line=number,
            ) from None
        if event is not None:
            events.append(event)
    if not events:
        raise InputError("is damaged: it holds no event", file=file)
    return sorted(events, key=lambda event: event.time_ns)


def _check(event: Event) -> None:
    _check_times(event)
    for name in _WHOLE.get(event.kind, ()):
        value = event.fields.get(name, 0)
        if not _is_whole(value):
            raise ValueError(f"{event.kind}.{name}: expected a whole number, not {value!r}")
    for name in _LISTS.get(event.kind, ()):
        value = event.fields.get(name, [])
        if not isinstance(value, list) or not all(map(_is_whole, value)):
            raise ValueError(f"{event.kind}.{name}: expected a list of whole numbers")
    if event.kind == EventKind.SPANS_PROFILED:
        _check_columns(event)


def _check_times(event: Event) -> None:
    for name in _TIMES.get(event.kind, ()):
        value = event.fields.get(name)
        if value is not None and not _is_time(value):
            raise ValueError(f"{event.kind}.{name}: expected a number of 0 or more, not {value!r}")
    if event.kind == EventKind.ITERATION_ENDED and event.fields.get("seconds") == 0:
        raise ValueError("iteration_ended.seconds: expected more than 0: an iteration takes time")


def _check_columns(event: Event) -> None:
    names = event.fields.get("ops")
    for name in COLLECTIVE_COLUMNS if isinstance(names, list) else ():
        column = event.fields.get(name)
        if isinstance(column, list) and isinstance(names, list) and len(column) != len(names):
            raise ValueError(
                f"{event.kind}.{name}: expected {len(names)} numbers, as there are ops, not "
                f"{len(column)}"
            )


def _is_time(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value >= 0
    )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
