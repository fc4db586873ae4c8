"""Event logs: followed while they are written, merged on one clock, and read once a run has ended.

A log that is followed may have half a line at its end or where an agent was killed, and that is no
event. The merged log of a run that has ended is written whole: a line in it that is no event is
damage, and figures from the rest would say something else than what was measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from castor_configs.errors import InputError
from castor_records.clocks import Log, in_order
from castor_records.events.event import Entry, Event
from castor_records.events.line import parse_line
from castor_records.run_files import RunFiles


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

    def read(self) -> list[Entry[Event]]:
        """Return the events that were added since the last call."""
        try:
            if self.path.stat().st_size == self._offset:  # mostly: no file is opened for it
                return []
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        entries = []
        for line in lines:
            if not line.strip():
                continue
            try:
                entry = parse_line(line.decode("utf-8"))
            except ValueError:
                self.torn += 1
                continue
            if entry is not None:
                entries.append(entry)
        return entries


def merge(logs: Iterable[Path]) -> list[Entry[Event]]:
    """Return the events of all logs by time; at one instant, in the order of `logs`.

    Where agents have measured that their clocks differ, times are corrected (`clocks`).
    """
    read = [EventTail(log).read() for log in logs]
    if len(read) == 1:
        return sorted(read[0], key=lambda entry: entry.time_ns)
    return in_order([Log.of_agent(entries) for entries in read])


def events_of_run(folder: RunFiles) -> list[Entry[Event]]:
    """Return the events of a run that has ended, in order of time.

    Raises:
        InputError: there is no log, or a line of it is no event, or has a field that is none.
    """
    file = folder.events_file
    try:
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        raise InputError("has no events.jsonl: the log of the run", file=folder.path) from None
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = parse_line(line.decode("utf-8"))
        except ValueError as error:
            raise InputError(
                f"is damaged: {error}; copy the log again, or leave the run out",
                file=file,
                line=number,
            ) from None
        if entry is not None:
            entries.append(entry)
    if not entries:
        raise InputError("is damaged: it holds no event", file=file)
    return sorted(entries, key=lambda entry: entry.time_ns)
