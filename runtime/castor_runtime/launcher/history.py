"""What is kept of the events of a run that goes on."""

from __future__ import annotations

from castor_records.events.event import Entry, Event
from castor_records.events.training import CheckpointCompleted, IterationEnded


class History:
    """What recoveries are computed from, of a run that goes on: bounded by their number.

    Of the iterations that ended, it keeps each rank's first and the newest of each generation.
    """

    def __init__(self) -> None:
        self._kept: list[Entry[Event]] = []
        self._newest: dict[int, Entry[Event]] = {}
        self._ranks: set[tuple[int, int]] = set()

    def add(self, entry: Entry[Event]) -> bool:
        """Take an event in; True if it is the first iteration of rank 0 in its generation."""
        match entry.event:
            case CheckpointCompleted():
                return False
            case IterationEnded(generation=generation, rank=rank):
                first = (generation, rank) not in self._ranks
                if first:
                    self._ranks.add((generation, rank))
                    self._kept.append(entry)
                self._newest[generation] = entry
                return first and rank == 0
            case _:
                self._kept.append(entry)
                return False

    @property
    def entries(self) -> list[Entry[Event]]:
        """What was kept."""
        return [*self._kept, *self._newest.values()]
