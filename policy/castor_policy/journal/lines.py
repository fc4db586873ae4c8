"""The lines of a journal: what stands in each, and how they are read.

A life begins with a line of its own (`Header`), and its other lines follow it. What an agent's
report says is written as what has changed in it since the last one of that agent, and ticks that
brought about nothing as a list of their times; both are exact.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.life import ROOT, WORKER
from castor_policy.journal.values import TAG, Json, tag_of

SCHEMA: Final = 1
"""Of a journal; goes up when a line changes its meaning."""

_REPORT: Final = tag_of(AgentReport)
_CHANGES: Final = "changes"
"""Stands for a report of which only what has changed is given."""


@dataclass(frozen=True, slots=True)
class Header:
    """The beginning of a life, or of a file that goes on with one.

    Attributes:
        castor: the version that wrote it.
        time_ns: CLOCK_REALTIME when it was written.
        spec: the job, without arguments and credentials.
        agent: its name.
        incarnation: of this life.
        address: of its checkpoint server.
        standby: see `AgentReport.standby`.
        left: for each rank the complete iterations that an earlier life left in memory.
        left_generation: see `WorkerState`.
        now_s: the driver's steady clock as the life began.
        worker: its state, where an earlier file has what it took in before; None: it begins here.
        root: as `worker`; None too if it is not root.
    """

    castor: str
    time_ns: int
    spec: JobSpec
    agent: str
    incarnation: str
    address: str
    standby: bool
    left: dict[int, tuple[int, ...]]
    left_generation: int
    now_s: float
    worker: Json = None
    root: Json = None


@dataclass(frozen=True, slots=True)
class EventLine:
    """An event that a machine took in; trees are JSON, see `values`.

    Attributes:
        by: `life.WORKER` or `life.ROOT`.
        event: what happened.
        now_s: the driver's steady clock.
        at_s: see `life.Taken`; None too where the driver gave none.
        tenure: see `life.Taken`.
        effects: what came of it, in order; None if it was an error.
        raised: that error.
    """

    by: str
    event: Json
    now_s: float
    at_s: float | None
    tenure: Json
    effects: list[Json] | None
    raised: str


@dataclass(frozen=True, slots=True)
class TickLine:
    """Ticks that brought about nothing, one after the other.

    Attributes:
        by: which machine took them in.
        now_s: for each, the driver's steady clock.
        at_s: for each, see `life.Taken`.
    """

    by: str
    now_s: tuple[float, ...]
    at_s: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class WriteFailedLine:
    """The root learnt that its write was not carried out."""


Line = Header | EventLine | TickLine | WriteFailedLine


class ReportChanges:
    """Writes a report as what has changed since the last one of its agent, and reads it so."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], dict[str, Json]] = {}

    def compact(self, by: str, tree: Json) -> Json:
        """Return a tree with its reports made short.

        Args:
            by: the machine in whose lines it stands.
            tree: as `values.encode` made it.
        """
        if isinstance(tree, list):
            return [self.compact(by, one) for one in tree]
        if not isinstance(tree, dict):
            return tree
        if tree.get(TAG) != _REPORT:
            return {name: self.compact(by, one) for name, one in tree.items()}
        key = by, tree["agent"]
        last, self._last[key] = self._last.get(key), tree
        if last is None:
            return tree
        changes = {name: one for name, one in tree.items() if one != last[name]}
        return {TAG: _CHANGES, "agent": tree["agent"]} | changes

    def expand(self, by: str, tree: Json) -> Json:
        """Return the tree that `compact` made short; trees must come in the order of writing.

        Raises:
            ValueError: the report whose changes it gives is missing.
        """
        if isinstance(tree, list):
            return [self.expand(by, one) for one in tree]
        if not isinstance(tree, dict):
            return tree
        if tree.get(TAG) == _CHANGES:
            agent = tree.get("agent")
            last = self._last.get((by, str(agent)))
            if last is None:
                raise ValueError(f"changes of a report of {agent!r}, of which none came before")
            tree = last | tree | {TAG: _REPORT}
        elif tree.get(TAG) != _REPORT:
            return {name: self.expand(by, one) for name, one in tree.items()}
        self._last[by, str(tree.get("agent"))] = tree
        return tree


def packed(times_s: Sequence[float | None]) -> Json:
    """Return times as JSON has them: if they are whole microseconds, the first and the gaps.

    null if none of them is known.
    """
    if all(one is None for one in times_s):
        return None
    known = [one for one in times_s if one is not None]
    whole = [round(one * 1e6) for one in known]
    if len(known) < len(times_s) or any(
        us / 1e6 != one for us, one in zip(whole, known, strict=True)
    ):
        return list(times_s)
    return [after - before for before, after in zip([0, *whole], whole, strict=False)]


def unpacked(tree: Json, count: int | None = None) -> tuple[float | None, ...]:
    """Return the times that `packed` made this of.

    Args:
        tree: it.
        count: how many there are, where that is known.

    Raises:
        ValueError: it is none, or holds another number of times.
    """
    if tree is None and count is not None:
        return (None,) * count
    if not isinstance(tree, list) or not tree or (count is not None and len(tree) != count):
        raise ValueError("no times of ticks")
    if any(isinstance(one, bool) or not isinstance(one, int | float | None) for one in tree):
        raise ValueError("no times of ticks")
    if not all(isinstance(one, int) for one in tree):
        return tuple(tree)
    times_s, total_us = [], 0
    for gap_us in tree:
        total_us += gap_us
        times_s.append(total_us / 1e6)
    return tuple(times_s)


def header_record(header: Header) -> Json:
    """Return the line of a header, as JSON has it."""
    record: dict[str, Any] = {
        "journal": SCHEMA,
        "castor": header.castor,
        "time_ns": header.time_ns,
        "agent": header.agent,
        "incarnation": header.incarnation,
        "address": header.address,
        "standby": header.standby,
        "left": {str(rank): list(held) for rank, held in sorted(header.left.items())},
        "left_generation": header.left_generation,
        "now_s": header.now_s,
        "spec": json.loads(header.spec.to_json()),
    }
    if header.worker is not None:
        record |= {"worker": header.worker, "root": header.root}
    return record


def parse(text: str, changes: ReportChanges) -> Line:
    """Read one line.

    Args:
        text: without the line's end.
        changes: of the life that the line belongs to; a header begins with its own.

    Raises:
        json.JSONDecodeError: it is no JSON, such as the half of a line.
        ValueError: it is no line of a journal, or one of another version; names the field.
    """
    record = json.loads(text)
    if not isinstance(record, dict):
        raise ValueError("expected a JSON object")  # noqa: TRY004 - the fault is in the text
    if "journal" in record:
        return _header(record)
    by = record.get("by")
    if by not in (WORKER, ROOT):
        raise ValueError(f"by: expected {WORKER!r} or {ROOT!r}, not {by!r}")
    if "write_failed" in record:
        return WriteFailedLine()
    if "ticks" in record:
        now_s = unpacked(record["ticks"])
        if None in now_s:
            raise ValueError("ticks: no times of ticks")
        return TickLine(by, tuple(t for t in now_s if t is not None), _at_s(record, len(now_s)))
    return EventLine(
        by,
        changes.expand(by, _field(record, "event", dict)),
        _field(record, "now_s", int | float),
        _field(record, "at_s", int | float | None, None),
        changes.expand(by, record.get("tenure")),
        changes.expand(by, _field(record, "effects", list | None, None)),
        _field(record, "raised", str, ""),
    )


def _at_s(record: dict[str, Any], count: int) -> tuple[float | None, ...]:
    try:
        return unpacked(record.get("at_s"), count)
    except ValueError as error:
        raise ValueError(f"at_s: {error}") from None


def _header(record: dict[str, Any]) -> Header:
    if record["journal"] != SCHEMA:
        raise ValueError(
            f"journal: schema {record['journal']!r}; this version of Castor reads {SCHEMA}"
        )
    left = _field(record, "left", dict)
    try:
        held = {int(rank): tuple(map(int, iterations)) for rank, iterations in left.items()}
    except (TypeError, ValueError):
        raise ValueError(f"left: {left!r} gives no iterations by rank") from None
    return Header(
        castor=_field(record, "castor", str),
        time_ns=_field(record, "time_ns", int),
        spec=JobSpec.from_json(json.dumps(_field(record, "spec", dict))),
        agent=_field(record, "agent", str),
        incarnation=_field(record, "incarnation", str),
        address=_field(record, "address", str),
        standby=_field(record, "standby", bool),
        left=held,
        left_generation=_field(record, "left_generation", int),
        now_s=_field(record, "now_s", int | float),
        worker=_field(record, "worker", dict | None, None),
        root=_field(record, "root", dict | None, None),
    )


_MISSING: Final = object()


def _field(record: dict[str, Any], name: str, kind: Any, default: object = _MISSING) -> Any:
    value = record.get(name, default)
    if value is _MISSING:
        raise ValueError(f"{name}: missing")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name}: cannot be {value!r}")
    return value
