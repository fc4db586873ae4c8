"""The event log of one agent and its trainers: a line an event, on the job's clock."""

from __future__ import annotations

import time
from pathlib import Path

from castor_records.events.event import Entry, Event


class EventLog:
    """Appends events to a file; each line is written whole, so that readers may follow it.

    Args:
        path: the file; an earlier life's events stay.
        started_ns: CLOCK_REALTIME when the job was made, from which all logs of it count.
    """

    def __init__(self, path: Path, started_ns: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._started_ns = started_ns

    def write(self, event: Event, realtime_ns: int | None = None) -> None:
        """Write an event that happened at `realtime_ns`, or now."""
        at_ns = (time.time_ns() if realtime_ns is None else realtime_ns) - self._started_ns
        self._file.write(Entry(at_ns, event).to_line().encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
