"""Event logs that are being written: followed line by line, and merged on one clock."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from castor_policy.events import Event, EventKind, parse_line


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


class History:
    """What recoveries are computed from, of a run that goes on: bounded by their number.

    Of the iterations that ended, it keeps each rank's first and the newest of each generation.
    """

    def __init__(self) -> None:
        self._kept: list[Event] = []
        self._newest: dict[object, Event] = {}
        self._ranks: set[tuple[object, object]] = set()

    def add(self, event: Event) -> bool:
        """Take an event in; True if it is the first iteration of rank 0 in its generation."""
        if event.kind == EventKind.CHECKPOINT_COMPLETED:
            return False
        if event.kind != EventKind.ITERATION_ENDED:
            self._kept.append(event)
            return False
        generation, rank = event.fields.get("generation"), event.fields.get("rank")
        first = (generation, rank) not in self._ranks
        if first:
            self._ranks.add((generation, rank))
            self._kept.append(event)
        self._newest[generation] = event
        return first and rank == 0

    @property
    def events(self) -> list[Event]:
        """What was kept."""
        return [*self._kept, *self._newest.values()]


def merge(logs: Iterable[Path]) -> list[Event]:
    """Return the events of all logs by time; at one instant, in the order of `logs`."""
    events = [event for log in logs for event in EventTail(log).read()]
    return sorted(events, key=lambda event: event.time_ns)
