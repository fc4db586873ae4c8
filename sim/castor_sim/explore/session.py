"""An agent's place in the simulated store: its lease, what it sees there, and what it writes.

The twin of the runtime's session, call for call; here every answer is a callback. What is seen,
what it means and what is written is `castor_policy.agents`', the runtime's own objects. What is
left to a session, for the agents to be right: what was planned while there was no lease is told
before anything is said under a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from castor_policy.agents import store_writes
from castor_policy.agents.documents import AgentReport, job_prefix
from castor_policy.agents.messages import SessionLost, SessionOpened, SessionRenewed, StoreLost
from castor_policy.agents.store_view import JobChange, StoreView
from castor_policy.store import KeyValue, LeaseLostError, StoreEvent, Txn, TxnResult

if TYPE_CHECKING:
    from castor_sim.explore.agent import SimulatedAgent

_RETRY_S = 0.2
_RENEWALS = 4  # in a lease's time


class Session:
    """Keeps a lease, follows the job's keys and writes this agent's report.

    Args:
        agent: whose; gets what is seen by its `see`, in order.
    """

    def __init__(self, agent: SimulatedAgent) -> None:
        self._agent = agent
        self._world = agent.world
        self._job = agent.world.spec.job
        self.view = StoreView(self._job, agent.name)
        self.lease: int | None = None
        self._writing = False

    def open(self) -> None:
        """Begin to keep a lease and to watch."""
        self._grant()
        self._read_and_watch()

    # ---- writes --------------------------------------------------------------------------------

    def transact(
        self, txn: Txn, done: Callable[[TxnResult | Exception], None], late_s: float = 0.0
    ) -> None:
        """Send a transaction."""
        self._world.store.request(
            self._agent, lambda model, now_s: model.transact(txn, now_s), done, late_s
        )

    def campaign(self) -> None:
        """Try to become root; whether that succeeded, and the term, is seen as any change is."""
        if self.lease is not None:
            txn = store_writes.campaign(self._job, self._agent.name, self.lease)
            self.transact(txn, lambda _answer: None)

    def report(self, report: AgentReport) -> None:
        """Have the report written as soon as the store takes it; the newest one wins."""
        self.view.own_report.desired = report
        self._write_report()

    def _write_report(self) -> None:
        own, lease = self.view.own_report, self.lease
        report = own.wanted(lease)
        if lease is None or report is None or self._writing:
            return
        self._writing = True

        def done(answer: TxnResult | Exception) -> None:
            if isinstance(answer, TxnResult):
                own.written(lease, report, answer.revision)
                self._write_next()
            elif isinstance(answer, LeaseLostError):
                self._writing = False  # the next session writes it
            else:
                self._agent.later(_RETRY_S, self._write_next)

        self.transact(store_writes.report(self._job, report, lease), done)

    def _write_next(self) -> None:
        self._writing = False
        self._write_report()

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
        self._agent.see(SessionOpened(self.view.plan()[0]))
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
            self._tell(self.view.read(found, revision))
            then(revision)

        self._world.store.request(
            self._agent, lambda model, now_s: model.get_prefix(job_prefix(self._job), now_s), done
        )

    def _read_and_watch(self) -> None:
        def watch(revision: int) -> None:
            self._world.store.watch(
                self._agent,
                revision + 1,
                self._changed,
                lambda: self._lost_store(self._read_and_watch),
            )

        self._read(watch, self._read_and_watch)

    def _changed(self, events: list[StoreEvent]) -> None:
        self._tell([told for event in events for told in self.view.change(event)])

    def _tell(self, seen: Sequence[JobChange]) -> None:
        for event in seen:
            self._agent.see(event)
        self._write_report()  # it may have been written over
