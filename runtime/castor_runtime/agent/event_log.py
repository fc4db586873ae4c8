"""The event log of one agent and its trainers: a line an event, on the job's clock."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from castor_records.events.event import Entry, Event
from castor_records.history import History


def put_other_run_away(folder: Path, run: str) -> None:
    """Put the event log that another run of this name has left away, as events-RUN.jsonl.

    Args:
        folder: of the agent.
        run: which one is to log there now.
    """
    try:
        record = json.loads((folder / "agent.json").read_text(encoding="utf-8"))
        before = str(record["run"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if before != run and before.isalnum():
        (folder / "final.json").unlink(missing_ok=True)
        if (folder / "events.jsonl").exists():
            (folder / "events.jsonl").replace(folder / f"events-{before}.jsonl")


class EventLog:
    """Appends events to a file; each line is written whole, so that readers may follow it.

    Args:
        path: the file; an earlier life's events stay.
        started_ns: CLOCK_REALTIME when the job was made, from which all logs of it count.
        clock_ns: this host's CLOCK_REALTIME.
        also_tell: gets each event beside the file.

    Attributes:
        path: the file.
        begins_bytes: size of the file when it was opened: before that, earlier lives tell.
        history: what is kept of what was written since.
    """

    def __init__(
        self,
        path: Path,
        started_ns: int,
        clock_ns: Callable[[], int] = time.time_ns,
        also_tell: Callable[[Event], None] = lambda _: None,
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("ab", buffering=0)
        self.begins_bytes = os.fstat(self._file.fileno()).st_size
        self.history = History()
        self._started_ns = started_ns
        self._clock_ns = clock_ns
        self._also_tell = also_tell

    def write(self, event: Event, realtime_ns: int | None = None) -> None:
        """Write an event that happened at `realtime_ns`, or now."""
        at_ns = (self._clock_ns() if realtime_ns is None else realtime_ns) - self._started_ns
        entry = Entry(at_ns, event)
        self._file.write(entry.to_line().encode() + b"\n")
        self.history.add(entry)
        self._also_tell(event)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
