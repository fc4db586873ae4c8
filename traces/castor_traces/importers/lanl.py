"""LANL failure data 1996-2005 (LA-UR-05-7318): node outages of 23 systems."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from castor_configs.errors import InputError
from castor_traces.importers.published import (
    NS_PER_MINUTE,
    Imported,
    MalformedRowError,
    RowLog,
    Table,
    fields_of,
    local_instant,
    ns_between,
    one_line,
    read_published,
    whole,
)
from castor_traces.trace import Failure, make_trace

_CAUSES = ("Facilities", "Hardware", "Human Error", "Network", "Undetermined", "Software")
_COLUMNS = (
    *("System", "nodes", "nodenumz", "node prod", "Prob Started", "Prob Fixed", "Down Time"),
    *_CAUSES,
)
_INSTANT = "%m/%d/%Y %H:%M"
# Both are in the file: "5-Apr" is what a spreadsheet made of April 2005, "Jan-97" it let stand.
# The names stand here because strptime's follow the locale.
_MONTH_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# The down time is true elapsed time, the two clock readings may straddle a change to or from
# daylight saving time, and each was cut to the minute.
_CLOCK_SLACK_MINUTES = 61

_SOURCE = "LANL LA-UR-05-7318, failure data 1996-2005 (Los Alamos National Laboratory)"
_LICENCE = "public release without a licence text; credit Los Alamos"


@dataclass(frozen=True, slots=True)
class _Outage:
    start: datetime
    down_minutes: int
    node: int | None
    nodes: int | None
    production: datetime | None
    cause: str
    software: bool


def import_lanl(path: str | Path, system: int = 20, skip_bad: bool = False) -> Imported:
    """Read the outages of one system.

    Machines: as many as the column "nodes" says (512 for system 20, of which 400 ever fail), so
    that nodes which never fail count. Systems 11 and 14 number some nodes beyond that count:
    those take the lowest numbers that no other failing node has. System 17 names neither nodes
    nor their number: one machine, and failures of "any".

    Time: local clock readings (see `local_instant`). The trace starts on the first day of the
    month in which the system's first node went into production, because the days from there to
    the first outage were watched too; only the month is known. Where that is unknown, or an
    outage came before, it starts with the first outage. It ends with the start of the last one:
    when watching ended is not in the file. Durations are the column "Down Time" (elapsed
    minutes), up to 222 days, zero included, and overlapping for one node.

    Kinds: cause "Software" is software; every other one, and none at all, is hardware. Hardware
    and facility outages lose the machine's memory, and after a network, human or undetermined
    one nobody can vouch for it: taking it as lost never flatters in-memory checkpoints.

    Args:
        path: the published CSV, packed by xz or not.
        system: the column "System", 2..24.
        skip_bad: leave malformed rows out and count them.

    Raises:
        InputError: no such file or system, or a malformed row, with its line.
    """
    file = str(path)
    log = RowLog(file, skip_bad)
    table = Table(file, read_published(path), _COLUMNS, "LANL failure data")
    outages: list[_Outage] = []
    systems: set[int] = set()
    for line, text, header in table.lines():
        with log.row(line):
            row = fields_of(text, header)
            number = whole(row["System"], "System")
            systems.add(number)
            if number == system:
                outages.append(_outage(row))
    if not outages:
        known = ", ".join(str(number) for number in sorted(systems)) or "none"
        raise InputError(
            f"no outage of system {system}; the file has {known}", file=file, key="system"
        )
    outages.sort(key=lambda outage: (outage.start, outage.node is not None, outage.node or 0))
    machines, number_of = _machine_numbers(outages)
    origin = _origin(outages)
    failures = [
        Failure(
            time_ns=ns_between(origin, outage.start),
            machine=None if outage.node is None else number_of[outage.node],
            kind="software" if outage.software else "hardware",
            duration_ns=outage.down_minutes * NS_PER_MINUTE,
            cause=outage.cause,
        )
        for outage in outages
    ]
    trace = make_trace(
        f"lanl-{system}",
        machines,
        failures[-1].time_ns,
        failures,
        source=_SOURCE,
        licence=_LICENCE,
        notes=[
            ("start", f"{origin:%Y-%m-%d %H:%M} local time"),
            ("kinds", "cause Software: software; all others, and none: hardware"),
        ],
    )
    return log.imported(trace)


def _outage(row: dict[str, str]) -> _Outage:
    start = local_instant(row["Prob Started"], _INSTANT, "Prob Started")
    fixed = local_instant(row["Prob Fixed"], _INSTANT, "Prob Fixed")
    if fixed < start:
        raise MalformedRowError(
            f"fixed ({row['Prob Fixed']}) before it started ({row['Prob Started']})"
        )
    elapsed = ns_between(start, fixed) // NS_PER_MINUTE
    down = whole(row["Down Time"], "Down Time") if row["Down Time"] else elapsed
    if abs(down - elapsed) > _CLOCK_SLACK_MINUTES:
        raise MalformedRowError(f"Down Time: {down} minutes, but {elapsed} from start to fix")
    causes = [name for name in _CAUSES if row[name]]
    if len(causes) > 1:
        raise MalformedRowError(f"expected one cause at most, found {', '.join(causes)}")
    cause = one_line(f"{causes[0]}: {row[causes[0]]}") if causes else ""
    return _Outage(
        start=start,
        down_minutes=down,
        node=whole(row["nodenumz"], "nodenumz") if row["nodenumz"] else None,
        nodes=whole(row["nodes"], "nodes") if row["nodes"] else None,
        production=_month(row["node prod"]),
        cause=cause,
        software=causes == ["Software"],
    )


def _month(text: str) -> datetime | None:
    if not text or text == "before tracking":
        return None
    parts = text.split("-")
    year = next((part for part in parts if part.isascii() and part.isdigit()), "")
    name = next((part for part in parts if part in _MONTH_NAMES), "")
    if len(parts) != 2 or not name or not 1 <= len(year) <= 2:
        raise MalformedRowError(f"node prod: expected such as 5-Apr or Jan-97, not {text!r}")
    century = 1900 if int(year) >= 90 else 2000
    return datetime(century + int(year), 1 + _MONTH_NAMES.index(name), 1)


def _origin(outages: list[_Outage]) -> datetime:
    """Return the instant that is time 0; `outages` are in order of their start."""
    production = [outage.production for outage in outages if outage.production is not None]
    return min([*production, outages[0].start])


def _machine_numbers(outages: list[_Outage]) -> tuple[int, dict[int, int]]:
    """Return how many machines there are, and the machine of each node that ever fails."""
    nodes = sorted({outage.node for outage in outages if outage.node is not None})
    stated = max((outage.nodes for outage in outages if outage.nodes is not None), default=0)
    machines = max(stated, len(nodes), 1)
    number_of = {node: node for node in nodes if node < machines}
    free = iter([number for number in range(machines) if number not in number_of])
    number_of.update((node, next(free)) for node in nodes if node >= machines)
    return machines, number_of
