"""The Trace Event Format as Perfetto takes it: whole microseconds, and slices that nest.

Perfetto draws the slices of one thread as a stack, and drops or cuts those that overlap without
one lying inside the other. Times are rounded down, each end by itself, so that slices that met at a
nanosecond meet at a microsecond; what really overlaps (a recovery that begins during another, a
checkpoint that is not complete when the next one starts) goes to a further thread beside its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final

NS_PER_US: Final = 1000
_FURTHER: Final = 10_000_000
"""Added to a thread's number for each further one; Castor's own threads have smaller numbers."""

Record = dict[str, Any]


def whole_us(time_ns: int) -> int:
    """Return a time in whole microseconds, rounded down."""
    return time_ns // NS_PER_US


def complete(
    process: int,
    thread: int,
    name: str,
    start_ns: int,
    end_ns: int,
    arguments: Mapping[str, object],
    *,
    category: str = "",
) -> Record:
    """Return a slice from `start_ns` to `end_ns`."""
    start_us = whole_us(start_ns)
    record: Record = {
        "ph": "X",
        "name": name,
        "pid": process,
        "tid": thread,
        "ts": start_us,
        "dur": max(0, whole_us(end_ns) - start_us),
        "args": dict(arguments),
    }
    return record | ({"cat": category} if category else {})


def chrome_trace(records: Iterable[Record]) -> dict[str, Any]:
    """Return the records as an object that `json.dumps` takes, overlaps on threads of their own."""
    events = list(records)
    threads: defaultdict[tuple[int, int], list[Record]] = defaultdict(list)
    names: dict[tuple[int, int], str] = {}
    for event in events:
        if event["ph"] == "X":
            threads[event["pid"], event["tid"]].append(event)
        elif event["ph"] == "M" and event["name"] == "thread_name":
            names[event["pid"], event["tid"]] = event["args"]["name"]
    for (process, thread), slices in sorted(threads.items()):
        for further in range(1, _spread(slices, thread)):
            label = f"{names.get((process, thread), f'thread {thread}')} ({further + 1})"
            events.append(
                {
                    "ph": "M",
                    "name": "thread_name",
                    "pid": process,
                    "tid": thread + further * _FURTHER,
                    "args": {"name": label},
                }
            )
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _spread(slices: list[Record], thread: int) -> int:
    """Give each slice the first thread on which it nests; return how many threads there are."""
    open_until: list[list[int]] = []
    for one in sorted(slices, key=lambda record: (record["ts"], -record["dur"])):
        start, end = one["ts"], one["ts"] + one["dur"]
        for ends in open_until:
            while ends and ends[-1] <= start:
                ends.pop()
        nests = (n for n, ends in enumerate(open_until) if not ends or end <= ends[-1])
        number = next(nests, len(open_until))
        if number == len(open_until):
            open_until.append([])
        open_until[number].append(end)
        one["tid"] = thread + number * _FURTHER
    return len(open_until)
