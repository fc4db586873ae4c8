"""Follows the logs of a job while its agents come and go, and makes one stream of its events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from castor_policy.store import Store, StoreUnavailableError
from castor_records.clocks import ClockOffset, Clocks
from castor_records.events.event import Entry, Event
from castor_records.events.line import parse_whole
from castor_runtime.launcher.accounts import Accounts
from castor_runtime.launcher.job_view import JobView, read_view
from castor_runtime.launcher.log_reading import FolderReader, JobLogs, Line
from castor_runtime.launcher.run_folder import RunFolder
from castor_runtime.transport import Credentials, PeerReader

AGAIN_S = 1.0
"""How often what is new is asked for."""


async def follow_job(
    store: Store,
    view: JobView,
    credentials: Credentials,
    logs: JobLogs,
    tell: Callable[[list[Line]], None],
    *,
    once: bool,
    node: str | None = None,
) -> None:
    """Tell what is new in the logs of a job's live agents, until the job has ended.

    Args:
        store: of the job; if it is away, the agents that are known are followed.
        view: the job as it stands.
        credentials: what agents want proved.
        logs: what is read of them.
        tell: gets the lines, in groups.
        once: do not follow: tell what there is.
        node: of this agent alone; None: of all.
    """
    assert view.spec is not None, "who follows has looked"
    met: dict[str, str] = {}
    while True:
        live = {n: one.address for n, one in view.reports.items() if node in (None, n)}
        for name, address in live.items():
            if met.get(name) != address:
                logs.meet(name, PeerReader(address, credentials, view.spec.run))
        for name in met.keys() - live.keys():
            logs.part(name)
        met = live
        tell(await asyncio.to_thread(logs.read, set(live)))
        if once or (not view.reports and view.plan is not None and view.plan.is_over):
            return
        await asyncio.sleep(AGAIN_S)
        try:
            newest = await read_view(store, view.job)
        except StoreUnavailableError:
            continue
        if newest.spec is None or newest.spec.run != view.spec.run:
            return  # removed, or another run's by now
        view = newest


async def follow_folder(
    folder: RunFolder, logs: JobLogs, tell: Callable[[list[Line]], None], *, once: bool
) -> None:
    """Tell what is new in the logs of a run on this machine; see `follow_job`."""
    met: set[str] = set()
    while True:
        lives = folder.is_live()
        names = set(folder.agent_names())
        for name in names - met:
            logs.meet(name, FolderReader(folder.agent(name)))
        met |= names
        tell(logs.read(names))
        if once or not lives:
            return
        await asyncio.sleep(AGAIN_S)


@dataclass(frozen=True, slots=True)
class Told:
    """An event, and who told it.

    Attributes:
        agent: by name.
        entry: at the time of the clock that all are compared with.
        offset: how far the agent's own clock is from that; None: it is not known.
    """

    agent: str
    entry: Entry[Event]
    offset: ClockOffset | None

    def to_json(self) -> dict[str, Any]:
        """Return it as `castor events --json` prints it: its line in the log, and two keys more."""
        offset = None if self.offset is None else self.offset.to_json()
        return {**json.loads(self.entry.to_line()), "by": self.agent, "clock": offset}


class EventStream:
    """Makes one stream of what several agents tell.

    Logs are followed from before the past was asked for, so that nothing is missed between; what
    comes twice by that is told once.
    """

    def __init__(self) -> None:
        self._clocks = Clocks()
        self._past: set[tuple[str, Entry[Event]]] = set()

    def past(self, accounts: Accounts) -> list[Told]:
        """Return what the agents told before, in order of time."""
        told = [
            (name, entry)
            for name, account in sorted(accounts.by_agent.items())
            for entry in account.entries
        ]
        self._past = set(told)
        return self._taken(told)

    def new(self, lines: Iterable[Line]) -> list[Told]:
        """Return what lines of their event logs tell, in order of time."""
        read = ((line.agent, parse_whole(line.text)) for line in lines)
        told = [(name, entry) for name, entry in read if entry is not None]
        return self._taken([one for one in told if one not in self._past])

    def _taken(self, fresh: Sequence[tuple[str, Entry[Event]]]) -> list[Told]:
        self._clocks.add(entry for _, entry in fresh)
        found = [
            Told(
                name,
                self._clocks.corrected(name, entry),
                self._clocks.offset(name, entry.time_ns),
            )
            for name, entry in fresh
        ]
        return sorted(found, key=lambda one: one.entry.time_ns)
