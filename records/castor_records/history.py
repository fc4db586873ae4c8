"""What is kept of the events of a run that goes on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from castor_records.events.event import Entry, Event
from castor_records.events.line import parse_whole
from castor_records.events.training import (
    Busy,
    CheckpointCompleted,
    IterationEnded,
    SpansProfiled,
)

_OFTEN: Final = (CheckpointCompleted, SpansProfiled, Busy)
"""Told again and again while nothing fails, and of no use once it is over."""

_KIND = re.compile(rb'"kind":"(\w+)"')
_GENERATION = re.compile(rb'"generation":(\d+)')
_RANK = re.compile(rb'"rank":(\d+)')
_OFTEN_KINDS: Final = {kind.kind.encode() for kind in _OFTEN}
_ENDED: Final = IterationEnded.kind.encode()


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
            case CheckpointCompleted() | SpansProfiled() | Busy():
                return False
            case IterationEnded(generation=generation, rank=rank):
                first = (generation, rank) not in self._ranks
                if first:
                    self._ranks.add((generation, rank))
                    self._kept.append(entry)
                    self._newest.pop(generation, None)
                else:
                    self._newest[generation] = entry
                return first and rank == 0
            case _:
                self._kept.append(entry)
                return False

    @property
    def size(self) -> int:
        """How many entries there are that later ones do not take the place of."""
        return len(self._kept)

    @property
    def entries(self) -> list[Entry[Event]]:
        """What was kept."""
        return [*self._kept, *self._newest.values()]

    @classmethod
    def of_file(cls, path: Path, end_bytes: int, most_bytes: int) -> History:
        """Return what is kept of the end of an event log; lines that are no events are left out.

        Most lines of a long log are looked at and not read: it takes 0.2 s for 16 MiB.

        Args:
            path: of the log; there need be none.
            end_bytes: what comes after so much of it is left.
            most_bytes: how much before that is looked at.
        """
        history, newest, seen = cls(), {}, set()
        for line in _last_lines(path, end_bytes, most_bytes):
            kind = _KIND.search(line)
            if kind is None or kind[1] in _OFTEN_KINDS:
                continue
            if kind[1] == _ENDED:
                generation, rank = _GENERATION.search(line), _RANK.search(line)
                if generation is None or rank is None:
                    continue
                if (generation[1], rank[1]) in seen:
                    newest[generation[1]] = line
                    continue
                seen.add((generation[1], rank[1]))
                newest.pop(generation[1], None)
            history._add_line(line)
        for line in newest.values():
            history._add_line(line)
        return history

    def _add_line(self, line: bytes) -> None:
        entry = parse_whole(line)
        if entry is not None:
            self.add(entry)


def _last_lines(path: Path, end_bytes: int, most_bytes: int) -> list[bytes]:
    start_bytes = max(0, end_bytes - most_bytes)
    try:
        with path.open("rb") as file:
            file.seek(start_bytes)
            data = file.read(end_bytes - start_bytes)
    except FileNotFoundError:
        return []
    lines = data.split(b"\n")
    return lines[1:] if start_bytes else lines
