"""Titan GPU lifetimes (ORNL, SC20): the failures of 18,688 K20X GPUs, one a node, in six years."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from castor_configs.errors import InputError
from castor_traces.importers.published import (
    Imported,
    MalformedRowError,
    RowLog,
    Table,
    fields_of,
    local_instant,
    ns_between,
    read_published,
)
from castor_traces.trace import Failure, make_trace

_COLUMNS = ("location", "insert", "remove", "event")
_EVENTS = {"DBE": "double bit error", "OTB": "off the bus"}
_INSTANT = "%Y-%m-%d %H:%M:%S"
_LOCATION = re.compile(r"c(\d+)-(\d+)c(\d+)s(\d+)n(\d+)")

_SOURCE = "Titan GPU life (Ostrouchov et al., SC20), olcf/TitanGPULife, data/gc_full.csv"
_LICENCE = "none stated; cite the SC20 paper"


@dataclass(frozen=True, slots=True)
class _Stint:
    location: str
    place: tuple[int, ...]
    insert: datetime | None
    remove: datetime
    event: str


def import_titan(path: str | Path, year: int | None = None, skip_bad: bool = False) -> Imported:
    """Read the GPU failures: one failure a row whose "event" is DBE or OTB, at its "remove".

    Machines: the locations named in the file (18,687), in the order column, row, cage, slot,
    node, so that neighbours in the machine are neighbours in the trace. A failed GPU's location
    keeps its number when the card is replaced. The location stands in the cause.

    Time: local clock readings (see `local_instant`), from the first insertion to the last
    removal in the file. With `year`, that calendar year as far as it lies in between: the
    failure rate grew forty times from 2014 to 2016, and one year is nearly stationary.

    All failures are hardware. There is no repair interval: every duration is unknown. Use this
    trace for rates, ageing and place, not to replay ups and downs.

    Args:
        path: gc_full.csv, packed by gzip or not.
        year: None for all.
        skip_bad: leave malformed rows out and count them.

    Raises:
        InputError: no such file, a year outside of the data, or a malformed row, with its line.
    """
    file = str(path)
    log = RowLog(file, skip_bad)
    table = Table(file, read_published(path), _COLUMNS, "Titan GPU life")
    stints: list[_Stint] = []
    for line, text, header in table.lines():
        with log.row(line):
            stints.append(_stint(fields_of(text, header)))
    if not stints:
        raise InputError("no rows", file=file)
    places = sorted({(stint.place, stint.location) for stint in stints})
    machine_of = {location: number for number, (_, location) in enumerate(places)}
    start = min(stint.insert or stint.remove for stint in stints)
    end = max(stint.remove for stint in stints)
    if year is not None:
        if not start.year <= year <= end.year:
            raise InputError(
                f"expected {start.year}..{end.year}, not {year}", file=file, key="year"
            )
        first, after = start.replace(year, 1, 1, 0, 0, 0), start.replace(year + 1, 1, 1, 0, 0, 0)
        start, end = max(start, first), min(end, after)
    failures = [
        Failure(
            time_ns=ns_between(start, stint.remove),
            machine=machine_of[stint.location],
            kind="hardware",
            cause=f"{stint.event} ({_EVENTS[stint.event]}) at {stint.location}",
        )
        for stint in stints
        if stint.event and start <= stint.remove and (year is None or stint.remove.year == year)
    ]
    trace = make_trace(
        "titan" if year is None else f"titan-{year}",
        len(places),
        ns_between(start, end),
        failures,
        source=_SOURCE,
        licence=_LICENCE,
        notes=[("start", f"{start:%Y-%m-%d %H:%M:%S} local time"), ("repairs", "not recorded")],
    )
    return log.imported(trace)


def _stint(row: dict[str, str]) -> _Stint:
    place = _LOCATION.fullmatch(row["location"])
    if place is None:
        raise MalformedRowError(f"location: expected such as c11-2c1s4n1, not {row['location']!r}")
    event = row["event"]
    if event and event not in _EVENTS:
        raise MalformedRowError(f"event: expected DBE, OTB or nothing, not {event!r}")
    remove = local_instant(row["remove"], _INSTANT, "remove")
    # 1,158 failures were matched to no stint in the inventory: they have no "insert".
    insert = local_instant(row["insert"], _INSTANT, "insert") if row["insert"] else None
    if insert is not None and remove < insert:
        raise MalformedRowError(
            f"removed ({row['remove']}) before it was inserted ({row['insert']})"
        )
    numbers = tuple(int(number) for number in place.groups())
    return _Stint(row["location"], numbers, insert, remove, event)
