"""InfiniteHBD-Trace (StepFun, SIGCOMM 2025): the faults of 400 GPU servers in 348 days."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from castor_configs.errors import InputError
from castor_traces.importers.published import (
    NS_PER_DAY,
    Imported,
    MalformedRowError,
    RowLog,
    Table,
    fields_of,
    one_line,
    read_published,
)
from castor_traces.seconds import ns_from_seconds_text
from castor_traces.trace import Failure, make_trace

_MACHINES = 400
_SPAN_DAYS = 348
_CSV_COLUMNS = ("node", "start_day", "end_day", "level", "class", "desc")

_SOURCE = "InfiniteHBD-Trace (SIGCOMM 2025, arXiv 2502.03885), stepfun-ai/InfiniteHBD-Trace"
_LICENCE = "Apache-2.0"


@dataclass(frozen=True, slots=True)
class _Fault:
    row: int  # where its start stands in the file
    node: str
    start_ns: int
    end_ns: int | None
    level: str
    cause: str


def import_infinitehbd(
    path: str | Path, skip_bad: bool = False, *, machines: int = _MACHINES
) -> Imported:
    """Read the faults, from the published JSON (packed by gzip or not) or the flat CSV.

    Machines: 400, of which 231 ever fail; those are numbered in the order in which they first
    appear, and the 169 that never fail come after them. Both files give the same trace. The file
    holds no topology, and the numbers follow the failures, so use `edit.shuffle_machines` before
    machines are placed by their number.

    Time: days from the start of the window (day 0, not the first fault at 3.8955), in steps of
    8.64 s. The window ends at day 348, or with the last event (348.98) where that is later.

    A fault is a start and the first later end of the same node and the same type; faults of one
    node may overlap, and last from nothing to 131 days, human repair included. A start without
    an end is taken to last to the end of the window (an unknown one would be drawn anew at each
    replay, and the node is known to be out); an end without a start is malformed.

    Kinds: level "Software Failure" is software; hardware and "Other Failure" are hardware: the
    server was taken out of service, with all that its memory held.

    Args:
        path: fault_trace.json, fault_trace.json.gz or faults_flat.csv.
        skip_bad: leave malformed rows out and count them.
        machines: how many servers were watched.

    Raises:
        InputError: no such file, neither format, more failing nodes than machines, or a
            malformed row, with its line (in JSON: its number, from 1).
    """
    file = str(path)
    log = RowLog(file, skip_bad)
    text = read_published(path)
    faults = list(_json_faults(text, log) if text.lstrip()[:1] in "[{" else _csv_faults(text, log))
    faults.sort(key=lambda fault: (fault.start_ns, fault.row))
    machine_of: dict[str, int] = {}
    for fault in faults:
        machine_of.setdefault(fault.node, len(machine_of))
    if len(machine_of) > machines:
        raise InputError(
            f"{len(machine_of)} servers fail, but there are to be {machines}",
            file=file,
            key="machines",
        )
    ends = (fault.start_ns if fault.end_ns is None else fault.end_ns for fault in faults)
    span_ns = max(_SPAN_DAYS * NS_PER_DAY, *ends, 0)
    unfinished = sum(fault.end_ns is None for fault in faults)
    failures = [
        Failure(
            time_ns=fault.start_ns,
            machine=machine_of[fault.node],
            kind="software" if fault.level == "Software Failure" else "hardware",
            duration_ns=(span_ns if fault.end_ns is None else fault.end_ns) - fault.start_ns,
            cause=fault.cause,
        )
        for fault in faults
    ]
    notes = [("kinds", "level Software Failure: software; all others: hardware")]
    if unfinished:
        notes.append(("unfinished", f"{unfinished} faults without an end, cut at the span"))
    trace = make_trace(
        "infinitehbd",
        machines,
        span_ns,
        failures,
        source=_SOURCE,
        licence=_LICENCE,
        notes=notes,
    )
    return log.imported(trace)


def _csv_faults(text: str, log: RowLog) -> Iterator[_Fault]:
    for line, row_text, header in Table(log.file, text, _CSV_COLUMNS, "InfiniteHBD").lines():
        fault = None
        with log.row(line):
            row = fields_of(row_text, header)
            if not row["node"]:
                raise MalformedRowError("node: expected a name, found nothing")
            start_ns = _days(row["start_day"], "start_day")
            end_ns = _days(row["end_day"], "end_day") if row["end_day"] else None
            if end_ns is not None and end_ns < start_ns:
                raise MalformedRowError("end_day: expected an end no earlier than start_day")
            cause = _cause(row["class"], row["desc"])
            fault = _Fault(line, row["node"], start_ns, end_ns, row["level"], cause)
        if fault is not None:
            yield fault


def _json_faults(text: str, log: RowLog) -> Iterator[_Fault]:
    try:
        # Numbers stay text: days go to nanoseconds without a float in between.
        records = json.loads(text, parse_float=str, parse_int=str, parse_constant=str)
    except (ValueError, RecursionError) as error:
        raise InputError(f"no valid JSON: {error}", file=log.file) from None
    if not isinstance(records, list):
        raise InputError("expected a list of events", file=log.file)
    events: list[tuple[int, int, str, bool, tuple[str, str, str]]] = []
    for number, record in enumerate(records, start=1):
        with log.row(number):
            node, time_ns, is_start, kind = _event(record)
            events.append((time_ns, number, node, is_start, kind))
    # By time only, and in the file's order within one instant: the rows may come unsorted.
    events.sort(key=lambda event: event[:2])
    begun: dict[tuple[str, tuple[str, str, str]], deque[tuple[int, int]]] = {}
    for time_ns, number, node, is_start, kind in events:
        waiting = begun.setdefault((node, kind), deque())
        if is_start:
            waiting.append((number, time_ns))
        elif waiting:
            row, start_ns = waiting.popleft()
            yield _Fault(row, node, start_ns, time_ns, kind[0], _cause(*kind[1:]))
        else:
            with log.row(number, again=True):
                raise MalformedRowError(f"fault_end without a fault_start of node {node} before it")
    for (node, kind), starts in begun.items():
        for row, start_ns in starts:
            yield _Fault(row, node, start_ns, None, kind[0], _cause(*kind[1:]))


def _event(record: Any) -> tuple[str, int, bool, tuple[str, str, str]]:
    if not isinstance(record, dict):
        raise MalformedRowError(f"expected an object, not {record!r}")
    kind = record.get("fault_type")
    what = record.get("event_type")
    node = record.get("node_id")
    if not isinstance(node, str) or not node:
        raise MalformedRowError(f"node_id: expected a name, not {node!r}")
    if what not in ("fault_start", "fault_end"):
        raise MalformedRowError(f"event_type: expected fault_start or fault_end, not {what!r}")
    if not isinstance(kind, dict):
        raise MalformedRowError(f"fault_type: expected an object, not {kind!r}")
    level, group, description = (str(kind.get(key, "")) for key in ("Level", "Class", "Desc"))
    time_ns = _days(str(record.get("event_time", "")), "event_time")
    return node, time_ns, what == "fault_start", (level, group, description)


def _days(text: str, what: str) -> int:
    try:
        ns = ns_from_seconds_text(text, unit_ns=NS_PER_DAY)
    except ValueError as error:
        raise MalformedRowError(f"{what}: {error}") from None
    if ns < 0:
        raise MalformedRowError(f"{what}: expected days, at least 0, not {text}")
    return ns


def _cause(group: str, description: str) -> str:
    return one_line(f"{group}: {description}" if description else group)
