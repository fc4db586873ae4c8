"""The whole event logs of a job's agents, every iteration in them: read from those that live."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from castor_policy.store import Store
from castor_records.clocks import Log, in_order
from castor_records.events.event import Entry, Event
from castor_records.events.failures import RunStarted
from castor_records.events.line import parse_whole
from castor_runtime.agent.job_making import run_started
from castor_runtime.launcher.accounts import ask_all, read_accounts
from castor_runtime.launcher.job_view import JobView
from castor_runtime.transport import Credentials, PeerReader

_EVENTS: Final = "events.jsonl"


@dataclass(frozen=True, slots=True)
class WholeLogs:
    """What all agents have logged, in order of time, clocks corrected.

    Attributes:
        entries: every event of those that live; of others what they left in the store.
        notes: of which agents not all is there, and why; a sentence each.
    """

    entries: Sequence[Entry[Event]]
    notes: tuple[str, ...]


async def read_whole_logs(store: Store, view: JobView, credentials: Credentials) -> WholeLogs:
    """Read them.

    Args:
        store: of the job; what agents that have ended left is there.
        view: the job as it stands.
        credentials: what the agents want proved.

    Raises:
        StoreUnavailableError: the store does not answer.
        OSError: a certificate cannot be read.
    """
    assert view.spec is not None, "who asks has looked"
    left = (await read_accounts(store, view, None)).by_agent
    answers = await ask_all(view, credentials, _events_of)
    logs: list[Log] = []
    notes: list[str] = []
    for name in sorted({*left, *answers}):
        answer = answers.get(name, "it is not alive")
        if not isinstance(answer, str):
            logs.append(Log(name, answer))
        elif name in left:
            account = left[name]
            logs.append(account.log)
            notes.append(
                f"{name}: {answer}; not all of its iterations are told here: its whole log is in "
                f"{account.folder} on {account.host}"
            )
        else:
            notes.append(f"{name}: {answer}; nothing of it is told here")
    entries = in_order(logs)
    if not any(isinstance(entry.event, RunStarted) for entry in entries):
        entries = [Entry(0, run_started(view.spec)), *entries]
    return WholeLogs(entries, tuple(notes))


def _events_of(reader: PeerReader) -> list[Entry[Event]]:
    found = bytearray()
    while True:
        _, piece = reader.read(_EVENTS, len(found))
        if not piece:
            break
        found += piece
    entries = map(parse_whole, bytes(found).splitlines())
    return [entry for entry in entries if entry is not None]
