"""The event log's records: one schema, written alike by the simulator and the runtime.

One JSON object a line: `schema`, `time_ns` (integer, from the start of the run), `kind`, and the
fields of that kind. Readers skip kinds that they do not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

SCHEMA = 1
"""Goes up when a field changes its meaning or disappears, not when one is added."""

Value = str | int | float | bool | None | list[int] | list[str]


class EventKind(StrEnum):
    """What can happen in a run."""

    RUN_STARTED = "run_started"
    FAILURE = "failure"
    DETECTED = "detected"
    PLANNED = "planned"
    SERIALISED = "serialised"
    REPLACED = "replaced"
    SET_ASIDE = "set_aside"
    RETRIEVED = "retrieved"
    RESUMED = "resumed"
    RUN_ENDED = "run_ended"
    # Of real runs only; the simulator's logs would grow with the horizon.
    ITERATION_ENDED = "iteration_ended"
    CHECKPOINT_COMPLETED = "checkpoint_completed"
    CHECKPOINT_LEFT_OUT = "checkpoint_left_out"
    TRAINER_STARTED = "trainer_started"
    REDUNDANT = "redundant"
    ROOT_ELECTED = "root_elected"
    STORE_LOST = "store_lost"
    STORE_BACK = "store_back"
    STORE_TROUBLE = "store_trouble"
    PERSISTED = "persisted"
    PERSIST_FAILED = "persist_failed"
    CORRUPT = "corrupt"
    SPANS_PROFILED = "spans_profiled"
    LINK_MEASURED = "link_measured"
    SCHEDULED = "scheduled"
    BUSY = "busy"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened, `time_ns` after the start of the run.

    Raises:
        ValueError: a field has the name of one that every event has.
    """

    time_ns: int
    kind: EventKind
    fields: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        taken = {"schema", "time_ns", "kind"} & set(self.fields)
        if taken:
            raise ValueError(f"every event has {sorted(taken)} already; name the field otherwise")

    def to_line(self) -> str:
        """Return the event as one line of JSON, without the line's end."""
        record = {"schema": SCHEMA, "time_ns": self.time_ns, "kind": str(self.kind), **self.fields}
        return json.dumps(record, separators=(",", ":"))


def parse_line(line: str) -> Event | None:
    """Read one line; None for a kind that this version does not know.

    Raises:
        ValueError: the line is no event, or of a newer schema.
    """
    record = json.loads(line)
    if not isinstance(record, dict) or not isinstance(record.get("time_ns"), int):
        raise ValueError(  # noqa: TRY004 - the fault is in the text, not in the program
            "expected a JSON object with an integer `time_ns`"
        )
    if record.get("schema") != SCHEMA:
        raise ValueError(f"schema {record.get('schema')!r}; this version reads schema {SCHEMA}")
    kind = str(record.get("kind"))
    if kind not in EventKind.__members__.values():
        return None
    fields = {k: v for k, v in record.items() if k not in ("schema", "time_ns", "kind")}
    return Event(record["time_ns"], EventKind(kind), fields)
