"""How a line of an event log is read.

One JSON object a line: `schema`, `time_ns` (integer, from the start of the run), `kind`, and the
fields of that kind. Readers skip kinds and fields that they do not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final

from castor_records.events import failures, storing, training
from castor_records.events.event import SCHEMA, Entry, Event

KINDS: Final[tuple[tuple[ModuleType, tuple[type[Event], ...]], ...]] = tuple(
    (module, tuple(k for k in Event.kinds.values() if k.__module__ == module.__name__))
    for module in (failures, training, storing)
)
"""Every kind of event, by the module that has it."""


def parse_line(line: str) -> Entry[Event] | None:
    """Read one line; None for a kind that this version does not know.

    Raises:
        ValueError: the line is no event, or of a newer schema, or a field of it is missing or
            holds what it may not.
    """
    record = json.loads(line)
    if not isinstance(record, dict) or not isinstance(record.get("time_ns"), int):
        raise ValueError(  # noqa: TRY004 - the fault is in the text, not in the program
            "expected a JSON object with an integer `time_ns`"
        )
    if record.get("schema") != SCHEMA:
        raise ValueError(f"schema {record.get('schema')!r}; this version reads schema {SCHEMA}")
    event = event_of(str(record.get("kind")), record)
    return None if event is None else Entry(record["time_ns"], event)


def parse_whole(line: str | bytes) -> Entry[Event] | None:
    """Read a line of a log that is still written to; None also for half a line, left by a death."""
    try:
        return parse_line(line if isinstance(line, str) else line.decode("utf-8"))
    except ValueError:
        return None


def event_of(kind: str, found: Mapping[str, Any]) -> Event | None:
    """Return the event of a kind that the fields say; None for a kind that is not known here.

    Raises:
        ValueError: a field is missing, or holds what it may not.
    """
    known = Event.kinds.get(kind)
    return None if known is None else known.of_fields(found)
