"""What the agents of a job tell of it: those that live by themselves, ended ones by the store.

A job's record comes from here, for whoever is elsewhere, or from a run's folder; both give the same
entries, of which recoveries, the result and the event lines are made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, TypeVar

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.store_keys import accounts_prefix
from castor_policy.store import Store
from castor_records.account import Account
from castor_records.clocks import ClockOffset, Clocks, told
from castor_records.events.event import Entry, Event
from castor_records.events.failures import RunStarted
from castor_runtime.agent.job_making import run_started
from castor_runtime.launcher.job_view import JobView
from castor_runtime.transport import Credentials, PeerError, PeerReader

AT_ONCE: Final = 32
"""So many agents are asked at a time."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Accounts:
    """What is told of a job.

    Attributes:
        spec: the job; None: it is not known.
        by_agent: what each agent tells, of this run.
        unreached: agents that are alive and could not be asked, and why.
    """

    spec: JobSpec | None = None
    by_agent: Mapping[str, Account] = field(default_factory=dict)
    unreached: Mapping[str, str] = field(default_factory=dict)

    def told(self) -> list[tuple[str, Entry[Event]]]:
        """Return who told what, in order of time, clocks corrected."""
        return told([self.by_agent[name].log for name in sorted(self.by_agent)])

    def entries(self) -> list[Entry[Event]]:
        """Return all that is told, in order of time, clocks corrected.

        It begins with the begin of the run, be it that the agent that made the job tells nothing.
        """
        found = [entry for _, entry in self.told()]
        if self.spec is None or any(isinstance(entry.event, RunStarted) for entry in found):
            return found
        return [Entry(0, run_started(self.spec)), *found]

    def clocks(self) -> dict[str, ClockOffset]:
        """Return how far each agent's clock was at last from the others', as far as is known."""
        logs = {name: account.entries for name, account in self.by_agent.items()}
        clocks = Clocks(entry for entries in logs.values() for entry in entries)
        newest = {name: max((e.time_ns for e in logs[name]), default=0) for name in logs}
        found = {name: clocks.offset(name, newest[name]) for name in logs}
        return {name: offset for name, offset in found.items() if offset is not None}


async def read_accounts(store: Store, view: JobView, credentials: Credentials | None) -> Accounts:
    """Return what the agents of a job tell.

    Args:
        store: of the job; what has ended is told there.
        view: the job as it stands.
        credentials: what the agents want proved; None: those that are alive are not asked, and
            what they left in the store before counts.

    Raises:
        StoreUnavailableError: the store does not answer.
        OSError: a certificate cannot be read.
    """
    if view.spec is None:
        return Accounts()
    found, unreached = await _left(store, view.job, view.spec.run), {}
    if credentials is not None:
        for name, answer in (await ask_all(view, credentials, _account_of)).items():
            if isinstance(answer, Account):
                found[name] = answer
            else:
                unreached[name] = answer
    return Accounts(view.spec, found, unreached)


async def ask_all(
    view: JobView, credentials: Credentials, ask: Callable[[PeerReader], _T]
) -> dict[str, _T | str]:
    """Ask every agent that is alive, many at a time; return each one's answer, or why it has none.

    Args:
        view: the job.
        credentials: what they want proved.
        ask: asks one of them, in a thread.

    Raises:
        OSError: a certificate cannot be read.
    """
    assert view.spec is not None, "who asks has looked"
    run = view.spec.run
    # What cannot be read is told once, before anybody is asked.
    credentials.client_context()

    def asked(report: AgentReport) -> _T | str:
        try:
            reader = PeerReader(report.address, credentials, run)
        except ValueError as error:
            return str(error)
        try:
            return ask(reader)
        except (PeerError, ValueError) as error:
            return str(error)
        finally:
            reader.close()

    reports = sorted(view.reports.values(), key=lambda report: report.agent)
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(AT_ONCE, "castor-ask") as pool:
        answers = await asyncio.gather(*(loop.run_in_executor(pool, asked, one) for one in reports))
    return dict(zip((one.agent for one in reports), answers, strict=True))


async def _left(store: Store, job: str, run: str) -> dict[str, Account]:
    """Return what agents have left in the store, of this run."""
    prefix = accounts_prefix(job)
    keys, _ = await store.get_prefix(prefix)
    found = {}
    for key in keys:
        try:
            account = Account.of_text(key.value)
        except ValueError:
            continue  # of another version: it says nothing
        if account.run == run and account.agent == key.key.removeprefix(prefix):
            found[account.agent] = account
    return found


def _account_of(reader: PeerReader) -> Account:
    return Account.of_text(reader.account())
