"""Bamboo (NSDI 2023): preemptions of spot instances, by name or only by count."""

from __future__ import annotations

import heapq
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from castor_configs.errors import InputError
from castor_traces.importers.published import (
    NS_PER_MS,
    Imported,
    MalformedRowError,
    RowLog,
    local_instant,
    ns_between,
    numbered_rows,
    read_published,
    split_row,
    whole,
)
from castor_traces.trace import Failure, make_trace

_SOURCE = "Bamboo spot-instance traces (NSDI 2023), uclasystem/bamboo"
_LICENCE = "MIT"
_CAUSE = "spot preemption"
_INSTANT = "%Y-%m-%d %H:%M:%S"


def import_bamboo(path: str | Path, skip_bad: bool = False) -> Imported:
    """Read the adds and removes of named instances (p3-trace.csv, g4dn-trace.csv).

    Machines are slots: each add takes the lowest free one, a remove is a failure of the slot of
    that instance, and it lasts until the slot is taken again. There are as many slots as there
    were ever live instances at once (32 and 24). Rows of one instant count in the file's order.

    A slot that is not taken again is out until the end of the file, which is as long as one
    knows; at the very end the duration is unknown. The slots fill in the first 25 minutes: until
    its first instance a slot counts as up, because the format has no machine that joins late.

    All failures are hardware: the instance is gone, with its memory. They are preemptions, about
    0.6 per node and hour: thousands of times the rate of broken machines, and most come several
    at one instant.

    Args:
        path: the published CSV (time in milliseconds, add or remove, name; no header).
        skip_bad: leave malformed rows out and count them: an add of a live instance and a remove
            of one that is not are malformed.

    Raises:
        InputError: no such file, no instances, or a malformed row, with its line.
    """
    file = str(path)
    log = RowLog(file, skip_bad)
    rows: list[tuple[int, int, str, str]] = []
    for line, text in numbered_rows(read_published(path)):
        with log.row(line):
            fields = split_row(text)
            if len(fields) != 3 or fields[1] not in ("add", "remove") or not fields[2]:
                raise MalformedRowError(f"expected 'time_ms,add|remove,name', not {text!r}")
            rows.append((whole(fields[0], "time_ms") * NS_PER_MS, line, fields[1], fields[2]))
    rows.sort(key=lambda row: row[:2])
    if not rows:
        raise InputError("no rows; expected 'time_ms,add|remove,name'", file=file)
    span_ns = rows[-1][0]
    slots, outages = _slots(rows, log)
    if not slots:
        raise InputError("no instance is ever added", file=file)
    failures = [
        Failure(start_ns, slot, "hardware", end_ns - start_ns, cause=_CAUSE)
        if end_ns is not None
        else Failure(start_ns, slot, "hardware", (span_ns - start_ns) or None, cause=_CAUSE)
        for slot, start_ns, end_ns in outages
    ]
    unfinished = sum(end_ns is None for *_, end_ns in outages)
    trace = make_trace(
        f"bamboo-{Path(path).name.split('-')[0].split('.')[0]}",
        slots,
        span_ns,
        failures,
        source=_SOURCE,
        licence=_LICENCE,
        notes=[
            ("machines_are", "slots; each new instance takes the lowest free one"),
            ("unfinished", f"{unfinished} slots not taken again, counted as out to the end"),
        ],
    )
    return log.imported(trace)


def _slots(
    rows: list[tuple[int, int, str, str]], log: RowLog
) -> tuple[int, list[tuple[int, int, int | None]]]:
    """Return the number of slots, and (slot, from, to or None) for each time that one was empty."""
    slots = 0
    free: list[int] = []
    slot_of: dict[str, int] = {}
    emptied: dict[int, int] = {}
    outages: list[tuple[int, int, int | None]] = []
    for time_ns, line, action, name in rows:
        with log.row(line, again=True):
            if (action == "add") == (name in slot_of):
                state = "is live already" if action == "add" else "is not live"
                raise MalformedRowError(f"{action} of {name}, which {state}")
            if action == "remove":
                slot = slot_of.pop(name)
                emptied[slot] = time_ns
                heapq.heappush(free, slot)
            elif free:
                slot = heapq.heappop(free)
                slot_of[name] = slot
                outages.append((slot, emptied.pop(slot), time_ns))
            else:
                slot_of[name] = slots
                slots += 1
    outages += ((slot, time_ns, None) for slot, time_ns in emptied.items())
    return slots, outages


def import_bamboo_counts(path: str | Path, skip_bad: bool = False) -> Imported:
    """Read samples of the number of live instances (gcloud/*.txt).

    There are no names, only counts, so a drop by k from one sample to the next is taken as k
    failures at the instant of the later sample, each of "any" machine and of unknown duration.
    What came and went between two samples is not seen, and a replacement within one interval
    hides a failure. Machines: the largest count.

    The samples are not in order: blocks of them overlap. They are sorted by time, and of several
    at one instant the last one in the file counts, since later blocks go on from there.

    Args:
        path: the published text (date, time, live instances; no header).
        skip_bad: leave malformed rows out and count them.

    Raises:
        InputError: no such file, no instances, or a malformed row, with its line.
    """
    file = str(path)
    log = RowLog(file, skip_bad)
    live: dict[datetime, int] = {}
    for line, text in numbered_rows(read_published(path)):
        with log.row(line):
            fields = split_row(text)
            if len(fields) != 3:
                raise MalformedRowError(f"expected 'date, time, live instances', not {text!r}")
            instant = local_instant(f"{fields[0]} {fields[1]}", _INSTANT, "date and time")
            live[instant] = whole(fields[2], "live instances")
    samples = sorted(live.items())
    machines = max(live.values(), default=0)
    if not machines:
        raise InputError("no live instances; expected 'date, time, live instances'", file=file)
    start, end = samples[0][0], samples[-1][0]
    failures = [
        Failure(ns_between(start, instant), None, "hardware", cause=_CAUSE)
        for (_, before), (instant, after) in pairwise(samples)
        for _ in range(before - after)
    ]
    trace = make_trace(
        f"gcloud-{Path(path).name.split('.')[0]}",
        machines,
        ns_between(start, end),
        failures,
        source=_SOURCE,
        licence=_LICENCE,
        notes=[
            ("start", f"{start:%Y-%m-%d %H:%M:%S} local time"),
            ("counts_only", "a drop by k between two samples is k failures of any machine"),
        ],
    )
    return log.imported(trace)
