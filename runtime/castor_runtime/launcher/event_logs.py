"""Event logs that are being written: followed line by line, and merged on one clock."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from castor_policy.events import Event, EventKind, Value, parse_line


class EventTail:
    """Follows one event log from its start; a line counts once its end is written.

    An agent that is killed leaves half a line, and its next life appends to it. Such a line is no
    event, and is counted in `torn`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.torn = 0
        self._offset = 0
        self._rest = b""

    def read(self) -> list[Event]:
        """Return the events that were added since the last call."""
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size == self._offset:
                    return []
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        events = []
        for line in lines:
            if not line.strip():
                continue
            try:
                event = parse_line(line.decode("utf-8"))
            except ValueError:
                self.torn += 1
                continue
            if event is not None:
                events.append(event)
        return events


class EventWriter:
    """Appends events to a log, each at once."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, time_ns: int, kind: EventKind, **fields: Value) -> Event:
        """Write one event and return it."""
        event = Event(time_ns, kind, fields)
        self._file.write(event.to_line() + "\n")
        self._file.flush()
        return event

    def close(self) -> None:
        """Close the log."""
        self._file.close()


def merge(logs: Iterable[Path]) -> list[Event]:
    """Return the events of all logs by time; at one instant, in the order of `logs`."""
    events = [event for log in logs for event in EventTail(log).read()]
    return sorted(events, key=lambda event: event.time_ns)
