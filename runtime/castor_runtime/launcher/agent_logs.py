"""The event logs of all agents of a run, followed together."""

from __future__ import annotations

from castor_records.clocks import Clocks
from castor_records.event_log import EventTail
from castor_records.events.event import Entry, Event
from castor_runtime.launcher.run_folder import RunFolder


class AgentLogs:
    """Follows every agent's log from its start; agents may be added while the run goes on.

    Agents may be on other hosts, by a folder that all share: where their clocks differ, times are
    corrected from the first measurement on.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._tails: dict[str, EventTail] = {}
        self._clocks = Clocks()

    def read(self) -> list[Entry[Event]]:
        """Return what agents have logged since the last call, by time."""
        for name in self._folder.agent_names():
            if name not in self._tails:
                self._tails[name] = EventTail(self._folder.agent(name) / "events.jsonl")
        told = [(name, one) for name in sorted(self._tails) for one in self._tails[name].read()]
        self._clocks.add(entry for _, entry in told)
        entries = [self._clocks.corrected(name, entry) for name, entry in told]
        return sorted(entries, key=lambda entry: entry.time_ns)
