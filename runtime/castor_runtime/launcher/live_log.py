"""What happens in a run, while it goes on: read from all agents, kept for recoveries, and shown."""

from __future__ import annotations

import time

from castor_records.event_log import EventTail
from castor_records.events.event import Entry, Event, generation_of
from castor_records.history import History
from castor_records.recoveries import recoveries
from castor_runtime.agent.event_log import EventLog
from castor_runtime.launcher.agent_logs import AgentLogs
from castor_runtime.launcher.run_folder import RunFolder
from castor_runtime.launcher.screen import Screen


class LiveLog:
    """The launcher's own log, and those of its agents.

    Args:
        folder: of the run.
        screen: where all of it is shown.
        started_ns: start of the run, CLOCK_REALTIME.
    """

    def __init__(self, folder: RunFolder, screen: Screen, started_ns: int) -> None:
        self._folder = folder
        self._screen = screen
        self._started_ns = started_ns
        self._agents = AgentLogs(folder)
        self._history = History()
        self._own: EventLog

    def open(self) -> None:
        """Begin the launcher's own log; the run folder is ready for it."""
        self._own = EventLog(self._folder.launcher_events, self._started_ns)

    def close(self) -> None:
        """End the launcher's own log."""
        self._own.close()

    def say(self, text: str) -> None:
        """Show a line."""
        self._screen.say(time.time_ns() - self._started_ns, text)

    def report(self, event: Event, time_ns: int) -> None:
        """Log and show an event of the launcher's own; `time_ns` is CLOCK_REALTIME."""
        self._own.write(event, time_ns)
        entry = Entry(time_ns - self._started_ns, event)
        self._history.add(entry)
        self._screen.event(entry)

    def read(self) -> list[Entry[Event]]:
        """Return what agents have logged since the last call, by time; it is shown already."""
        entries = self._agents.read()
        for entry in entries:
            recovered = self._history.add(entry)
            self._screen.event(entry)
            if recovered:
                generation = generation_of(entry.event)
                for one in recoveries(self._history.entries):
                    if one.generation == generation:
                        self._screen.recovery(entry.time_ns, one)
        return entries

    def take_in_past(self) -> int:
        """Take in what the logs say already, without showing it; return its newest generation."""
        past = [*EventTail(self._folder.launcher_events).read(), *self._agents.read()]
        for entry in sorted(past, key=lambda entry: entry.time_ns):
            self._history.add(entry)
        return max((generation_of(entry.event) or 1 for entry in past), default=1)
