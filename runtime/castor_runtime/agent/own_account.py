"""What this agent tells whoever asks: its logs, and its account of the job.

The account goes into the store when the agent ends, and before, so that it is known should this
host be lost: soon after the root, if this is the root, has told something, and some time after
anything else has happened that is worth telling. While nothing fails nothing is written. Agents
under a launcher leave none there: the launcher has their folders.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.store_keys import accounts_prefix
from castor_policy.store import Put, Store, StoreUnavailableError, Txn
from castor_records.account import Account
from castor_records.events.event import Entry, Event
from castor_records.history import History
from castor_runtime.agent.event_log import EventLog
from castor_runtime.agent.options import AgentOptions
from castor_runtime.transport import Told

SOON_S: Final = 2.0
"""What the root tells comes in groups, one for each failure: each is left in the store at once."""

LATER_S: Final = (20.0, 40.0)
"""So long after something has happened that is worth telling; not all agents write at once."""

_LOOK_S: Final = 1.0
_NEVER_S: Final = float("inf")
_LEAVE_S: Final = 3.0
_PAST_BYTES: Final = 16 << 20
_SERVED: Final = re.compile(
    r"events\.jsonl|agent\.log|final\.json|rank-\d+\.log|journal-[0-9a-f]+(\.1)?\.jsonl"
)


class OwnAccount:
    """Tells what this agent knows.

    Args:
        options: of the agent.
        spec: the job.
        log: its event log.
        store: where its account is left.
        say: told in a line if that is not possible.
    """

    def __init__(
        self,
        options: AgentOptions,
        spec: JobSpec,
        log: EventLog,
        store: Store,
        say: Callable[[str], None],
    ) -> None:
        self._options = options
        self._spec = spec
        self._log = log
        self._store = store
        self._say = say
        self._past: list[Entry[Event]] | None = None
        self._reading = threading.Lock()
        self._soon_s = _NEVER_S

    @property
    def told(self) -> Told:
        """What the peer server serves of it."""
        folder = self._options.folder.resolve()
        return Told(str(folder), lambda: served_files(folder), self.text)

    def text(self) -> str:
        """Return the account as it travels; takes a while, in a thread of the caller's."""
        entries = [*self._earlier(), *self._log.history.entries]
        return Account(
            agent=self._options.name,
            run=self._spec.run,
            host=socket.gethostname(),
            folder=str(self._options.folder.resolve()),
            entries=sorted(entries, key=lambda entry: entry.time_ns),
            final=self._final(),
        ).to_text()

    def _earlier(self) -> list[Entry[Event]]:
        """Return what is kept of earlier lives' events; read when it is first asked for."""
        with self._reading:
            if self._past is None:
                end_bytes = self._log.begins_bytes
                self._past = History.of_file(self._log.path, end_bytes, _PAST_BYTES).entries
            return self._past

    def _final(self) -> dict[str, Any] | None:
        try:
            found = json.loads((self._options.folder / "final.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def root_told(self) -> None:
        """Have the account left in the store soon."""
        self._soon_s = min(self._soon_s, time.monotonic() + SOON_S)

    async def keep_left(self, look_s: float = _LOOK_S) -> None:
        """Leave the account in the store when it is due, until cancelled.

        Args:
            look_s: how often it is looked whether it is due.
        """
        left, later_s = 0, _NEVER_S
        while not self._options.under_launcher:
            await asyncio.sleep(look_s)
            now_s = time.monotonic()
            if self._log.history.size > left and later_s == _NEVER_S:
                later_s = now_s + random.uniform(*LATER_S)  # noqa: S311 - it spreads load
            if now_s >= min(self._soon_s, later_s):
                left, later_s, self._soon_s = self._log.history.size, _NEVER_S, _NEVER_S
                if await self._put():
                    left = -1  # the store is away: again some time later

    async def leave(self) -> None:
        """Leave the account in the store; if that is not possible it is said, and that is all."""
        if not self._options.under_launcher and (reason := await self._put()):
            self._say(f"what happened here stays in {self._options.folder}: the store: {reason}")

    async def _put(self) -> str:
        """Leave the account in the store; return why that was not possible, "" if it was."""
        key = accounts_prefix(self._spec.job) + self._options.name
        try:
            async with asyncio.timeout(_LEAVE_S):
                text = await asyncio.to_thread(self.text)
                await self._store.transact(Txn((), (Put(key, text),)))
        except (StoreUnavailableError, TimeoutError, OSError) as error:
            return str(error) or "it does not answer"
        return ""


def served_files(folder: Path) -> dict[str, Path]:
    """Return what peers may read of an agent's folder, by name: its logs, and nothing else."""
    try:
        return {path.name: path for path in folder.iterdir() if is_served(path.name)}
    except OSError:
        return {}


def is_served(name: str) -> bool:
    """Whether peers may read a file of that name: it is a log's."""
    return _SERVED.fullmatch(name) is not None
