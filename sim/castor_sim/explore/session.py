"""An agent's place in the simulated store: its lease, what it sees there, and what it writes.

The twin of the runtime's session, call for call; here every answer is a callback. What a session
has to see to, for the agents to be right:

- A change is taken in once and in the order of its key's revisions, whether a watch or a read
  brings it; keys that a read no longer shows are told as deleted.
- The newest report wins. A report whose answer was lost may still arrive after a newer one: when
  the watch shows another report of this life than the last one, it is written again.
- What was planned while there was no lease is told before anything is said under a new one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from castor_policy.agents.documents import (
    AgentReport,
    Plan,
    agents_prefix,
    job_prefix,
    persist_key,
    plan_key,
    root_key,
)
from castor_policy.agents.messages import (
    PersistChanged,
    PlanChanged,
    ReportChanged,
    RootChanged,
    SessionLost,
    SessionOpened,
    SessionRenewed,
    StoreLost,
    WorkerEvent,
)
from castor_policy.store import (
    Compare,
    KeyValue,
    LeaseLostError,
    Put,
    StoreEvent,
    Txn,
    TxnResult,
)
from castor_sim.explore.store_server import Stream

if TYPE_CHECKING:
    from castor_sim.explore.agent import SimulatedAgent

_RETRY_S = 0.2
_RENEWALS = 4  # in a lease's time


@lru_cache(maxsize=4096)
def read_plan(text: str) -> Plan:
    """Return the plan that a key holds; plans are values, so equal texts share one."""
    return Plan.from_json(text)


@lru_cache(maxsize=4096)
def read_report(text: str) -> AgentReport:
    """Return the report that a key holds."""
    return AgentReport.from_json(text)


@dataclass(frozen=True, slots=True)
class Seen:
    """A key as last seen."""

    value: str
    create_revision: int
    mod_revision: int


class Session:
    """Keeps a lease, follows the job's keys and writes this agent's report.

    Args:
        agent: whose; gets what is seen by its `see`, in order.
    """

    def __init__(self, agent: SimulatedAgent) -> None:
        self._agent = agent
        self._world = agent.world
        job = agent.world.spec.job
        self._root_key, self._plan_key = root_key(job), plan_key(job)
        self._persist_key, self._agents = persist_key(job), agents_prefix(job)
        self._own_key = self._agents + agent.name
        self._prefix = job_prefix(job)
        self.lease: int | None = None
        self._keys: dict[str, Seen] = {}
        self._revisions: dict[str, int] = {}
        self._born_revision = -1
        self._stream: Stream | None = None
        self._report: AgentReport | None = None
        self._written: tuple[int, AgentReport] | None = None
        self._written_revision = 0
        self._writing = False

    def open(self) -> None:
        """Begin to keep a lease and to watch."""
        self._grant()
        self._read_and_watch()

    # ---- what is known -------------------------------------------------------------------------

    def term(self) -> int | None:
        """Return the term if the root's key was created by this life of the agent."""
        root = self._keys.get(self._root_key)
        ours = root is not None and root.value == self._agent.name
        if root is None or not ours or root.create_revision <= self._born_revision:
            return None
        return root.create_revision

    def plan(self) -> tuple[Plan | None, int]:
        """Return the plan as last seen, and the revision of its last change."""
        found = self._keys.get(self._plan_key)
        return (None, 0) if found is None else (read_plan(found.value), found.mod_revision)

    def reports(self) -> list[AgentReport]:
        """Return every agent's report as last seen."""
        names = sorted(key for key in self._keys if key.startswith(self._agents))
        return [read_report(self._keys[name].value) for name in names]

    # ---- writes --------------------------------------------------------------------------------

    def transact(
        self, txn: Txn, done: Callable[[TxnResult | Exception], None], late_s: float = 0.0
    ) -> None:
        """Send a transaction."""
        self._world.store.request(
            self._agent, lambda model, now_s: model.transact(txn, now_s), done, late_s
        )

    def campaign(self) -> None:
        """Try to create the root's key; the watch shows who has."""
        if self.lease is not None:
            key = self._root_key
            txn = Txn((Compare(key, create_revision=0),), (Put(key, self._agent.name, self.lease),))
            self.transact(txn, lambda _answer: None)

    def report(self, report: AgentReport) -> None:
        """Have the report written as soon as the store takes it."""
        self._report = report
        self._write_report()

    def _write_report(self) -> None:
        report, lease = self._report, self.lease
        if report is None or lease is None or self._writing or self._written == (lease, report):
            return
        self._writing = True

        def done(answer: TxnResult | Exception) -> None:
            self._writing = False
            if isinstance(answer, TxnResult):
                # An older report may have arrived after this one, and be seen before its answer.
                overtaken = self._revisions.get(self._own_key, 0) > answer.revision
                self._written = None if overtaken else (lease, report)
                self._written_revision = answer.revision
                self._write_report()
            elif not isinstance(answer, LeaseLostError):
                self._agent.later(_RETRY_S, self._write_report)

        self.transact(Txn((), (Put(self._own_key, report.to_json(), lease),)), done)

    # ---- the lease -----------------------------------------------------------------------------

    def _grant(self) -> None:
        lease_s = self._world.spec.lease_s

        def done(answer: int | Exception) -> None:
            if isinstance(answer, int):
                self._read(lambda _revision: self._opened(answer), self._grant)
            else:
                self._lost_store(self._grant)

        self._world.store.request(
            self._agent, lambda model, now_s: model.grant(lease_s, now_s), done
        )

    def _opened(self, lease: int) -> None:
        self.lease = lease
        self._agent.see(SessionOpened(self.plan()[0]))
        self._write_report()
        self._renew()

    def _renew(self) -> None:
        lease = self.lease
        if lease is None:
            return
        sent_s = self._agent.local_s()

        def done(answer: float | Exception) -> None:
            if isinstance(answer, LeaseLostError):
                self.lease = None
                self._agent.see(SessionLost())
                self._grant()
            elif isinstance(answer, Exception):
                self._lost_store(self._renew)
            else:
                self._agent.see(SessionRenewed(sent_s))
                wait_s = self._world.spec.lease_s / _RENEWALS
                self._agent.later(self._agent.real_s(wait_s), self._renew)

        self._world.store.request(
            self._agent, lambda model, now_s: model.keep_alive(lease, now_s), done
        )

    def _lost_store(self, again: Callable[[], None]) -> None:
        self._agent.see(StoreLost())
        self._agent.later(_RETRY_S, again)

    # ---- reads and watches ---------------------------------------------------------------------

    def _read(self, then: Callable[[int], None], again: Callable[[], None]) -> None:
        def done(answer: tuple[list[KeyValue], int] | Exception) -> None:
            if isinstance(answer, Exception):
                self._lost_store(again)
                return
            found, revision = answer
            self._take_in(found, revision)
            then(revision)

        self._world.store.request(
            self._agent, lambda model, now_s: model.get_prefix(self._prefix, now_s), done
        )

    def _read_and_watch(self) -> None:
        def watch(revision: int) -> None:
            self._stream = self._world.store.watch(
                self._agent,
                revision + 1,
                self._changed,
                lambda: self._lost_store(self._read_and_watch),
            )

        self._read(watch, self._read_and_watch)

    def _take_in(self, found: list[KeyValue], revision: int) -> None:
        if self._born_revision < 0:
            self._born_revision = revision
        present = {item.key for item in found}
        for key in sorted(set(self._keys) - present):
            if self._keys[key].mod_revision <= revision:
                self._see(StoreEvent(key, None, 0, revision))
        for item in found:
            self._see(StoreEvent(item.key, item.value, item.create_revision, item.mod_revision))
        if self._root_key not in self._keys and self._root_key not in self._revisions:
            # Nothing tells of a key that never was.
            self._revisions[self._root_key] = revision
            self._agent.see(RootChanged(""))

    def _changed(self, events: list[StoreEvent]) -> None:
        for event in events:
            self._see(event)

    def _see(self, event: StoreEvent) -> None:
        if event.mod_revision <= self._revisions.get(event.key, 0):
            return
        self._revisions[event.key] = event.mod_revision
        if event.value is None:
            self._keys.pop(event.key, None)
        else:
            self._keys[event.key] = Seen(event.value, event.create_revision, event.mod_revision)
        told = self._told(event)
        if told is not None:
            self._agent.see(told)
        if event.key == self._own_key:
            self._repair(event)

    def _repair(self, event: StoreEvent) -> None:
        """Write the report again if something else came into the store after it."""
        if self._written is None or event.mod_revision <= self._written_revision:
            return
        if event.value is None or read_report(event.value) != self._written[1]:
            self._written = None
            self._write_report()

    def _told(self, event: StoreEvent) -> WorkerEvent | ReportChanged | None:
        key, value = event.key, event.value
        if key == self._plan_key and value is not None:
            return PlanChanged(read_plan(value), event.mod_revision)
        if key == self._root_key:
            return RootChanged(value or "")
        if key == self._persist_key and value is not None:
            return PersistChanged(int(value))
        if key.startswith(self._agents):
            name = key[len(self._agents) :]
            return ReportChanged(name, None if value is None else read_report(value))
        return None
