"""What happens in a run, while it goes on: read from all agents, kept for recoveries, and shown."""

from __future__ import annotations

import time
from collections.abc import Mapping

from castor_policy.events import Event, EventKind, Value
from castor_runtime.agent.event_log import EventLog
from castor_runtime.launcher.agent_logs import AgentLogs
from castor_runtime.launcher.event_logs import EventTail, History
from castor_runtime.launcher.run_folder import RunFolder
from castor_runtime.launcher.run_result import recoveries
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

    def report(self, kind: EventKind, time_ns: int, fields: Mapping[str, Value]) -> None:
        """Log and show an event of the launcher's own; `time_ns` is CLOCK_REALTIME."""
        self._own.write(kind, fields, time_ns)
        event = Event(time_ns - self._started_ns, kind, fields)
        self._history.add(event)
        self._screen.event(event)

    def read(self) -> list[Event]:
        """Return what agents have logged since the last call, by time; it is shown already."""
        events = self._agents.read()
        for event in events:
            recovered = self._history.add(event)
            self._screen.event(event)
            if recovered:
                generation = event.fields.get("generation")
                for one in recoveries(self._history.events):
                    if one.generation == generation:
                        self._screen.recovery(event.time_ns, one)
        return events

    def take_in_past(self) -> int:
        """Take in what the logs say already, without showing it; return its newest generation."""
        past = [*EventTail(self._folder.launcher_events).read(), *self._agents.read()]
        for event in sorted(past, key=lambda event: event.time_ns):
            self._history.add(event)
        generations = (event.fields.get("generation") for event in past)
        return max((g for g in generations if isinstance(g, int)), default=1)
