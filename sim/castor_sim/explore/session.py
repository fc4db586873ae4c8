"""An agent's place in the simulated store: its lease, what it sees there, and what it writes.

The twin of the runtime's session, call for call; here every answer is a callback. How the lease is
kept, what is seen, what it means and what is written is `castor_policy.agents`', the runtime's own
objects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from castor_policy.agents import store_writes
from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.events import NameTaken, StoreLost
from castor_policy.agents.job_change import JobChange
from castor_policy.agents.lease_keeping import (
    RETRY_S,
    GrantLease,
    LeaseKeeper,
    LeaseStep,
    ReadAll,
    RenewLease,
)
from castor_policy.agents.own_report import NameClaim, Sign, Verdict
from castor_policy.agents.store_view import StoreView
from castor_policy.store import (
    Keys,
    KeyValue,
    LeaseLostError,
    StoreEvent,
    StoreUnavailableError,
    Txn,
    TxnResult,
)
from castor_sim.explore.roles import Agent
from castor_sim.explore.store_server import Stream
from castor_sim.explore.surroundings import Surroundings

AnswerT = TypeVar("AnswerT", int, float)


class Session:
    """Keeps a lease, follows the job's keys and writes this agent's report.

    Args:
        world: around it.
        agent: whose; gets what is seen by its `see`, in order.
    """

    def __init__(self, world: Surroundings, agent: Agent) -> None:
        self._agent = agent
        self._world = world
        self._job = world.spec.job
        self.view = StoreView(self._job, agent.name)
        self.keeper = LeaseKeeper(world.spec, self.view)
        self._writing = False
        self._claimed = False
        self._waiting = False
        self._race = NameClaim(world.spec.limits.lease_s)
        self._stream: Stream | None = None
        self._watched = (self.view.to_watch, self.view.epoch)

    @property
    def lease(self) -> int | None:
        """The lease that this agent's keys live by."""
        return self.keeper.lease

    def open(self) -> None:
        """Begin to keep a lease and to watch."""
        self._keep_lease()
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
        if self.lease is None:
            return
        if not self.view.may_campaign():
            self._hear_of_others()
            return
        txn = store_writes.campaign(self._job, self._agent.name, self.lease)
        self.transact(txn, lambda _answer: None)

    def _hear_of_others(self) -> None:
        """Find out whether those who knew more are still there, before it stands again."""

        def heard(answer: tuple[list[KeyValue], int] | Exception) -> None:
            if not isinstance(answer, Exception):
                self.view.heard_of_others(answer[0])

        self._read_reports(heard)

    def depose(self, root: str) -> None:
        """Take the office from a root whose machine is lost by what all agents say."""

        def heard(answer: tuple[list[KeyValue], int] | Exception) -> None:
            if isinstance(answer, Exception):
                return
            term = self.view.term_to_end(self._world.spec, root, answer[0])
            if term is not None:
                self._world.note(f"{self._agent.incarnation} deposes {root}")
                self.transact(store_writes.end_term(self._job, term), lambda _answer: None)

        self._read_reports(heard)

    def _read_reports(
        self, heard: Callable[[tuple[list[KeyValue], int] | Exception], None]
    ) -> None:
        reports = Keys.under(self.view.others_prefix)
        self._world.store.request(
            self._agent, lambda model, now_s: model.read(reports, now_s), heard
        )

    def report(self, report: AgentReport) -> None:
        """Have the report written as soon as the store takes it; the newest one wins."""
        self.view.own_report.desired = replace(report, domain=self._agent.host.domain)
        self._write_report()

    def _write_report(self) -> None:
        own, lease = self.view.own_report, self.lease
        write = own.wanted(lease)
        if lease is None or write is None or self._writing:
            return
        self._writing = True
        epoch = self.view.epoch

        def done(answer: TxnResult | Exception) -> None:
            if isinstance(answer, TxnResult) and answer.succeeded:
                if epoch == self.view.epoch:
                    own.written(lease, write, answer.revision)
                    self._retire(lease)
                    self._claim()
                self._write_next()
            elif isinstance(answer, TxnResult):
                self._read_again(lambda _revision: self._write_next(), lambda _error: again())
            elif isinstance(answer, LeaseLostError):
                self._writing = False  # the next session writes it
            else:
                again()

        def again() -> None:
            self._agent.later(RETRY_S, self._write_next)

        self.transact(store_writes.report(self._job, write, lease), done)

    def _retire(self, written_under: int) -> None:
        """Revoke the lease from before the store lost data, once the report is under its own."""
        retired = self.keeper.retired
        if retired is not None and written_under == self.lease:
            self.keeper.retired = None
            self._world.store.request(
                self._agent, lambda model, now_s: model.revoke(retired, now_s), lambda _answer: None
            )

    def _write_next(self) -> None:
        self._writing = False
        self._write_report()

    # ---- the lease -----------------------------------------------------------------------------

    def _keep_lease(self) -> None:
        step = self.keeper.step
        if not self._agent.serves():
            self._agent.later(RETRY_S, self._keep_lease)
        elif step.wait_s > 0:
            self._agent.later(self._agent.real_s(step.wait_s), self._ask, step)
        else:
            self._ask(step)

    def _ask(self, step: LeaseStep) -> None:
        self.keeper.sent(self._agent.local_s())
        store = self._world.store
        match step:
            case GrantLease(_, ttl_s):
                store.request(
                    self._agent,
                    lambda model, s: self._counted(model.grant(ttl_s, s)),
                    self._answered,
                )
            case RenewLease(_, lease):
                store.request(
                    self._agent,
                    lambda model, s: self._counted(model.keep_alive(lease, s)),
                    self._answered,
                )
            case ReadAll():
                self._read_again(lambda _revision: self._answered(None), self._answered)

    def _counted(self, answer: AnswerT) -> AnswerT:
        """Note when the store has begun to count."""
        self._agent.lease_counts_from_s = self._agent.local_s()
        return answer

    def _answered(self, answer: float | Exception | None) -> None:
        if isinstance(answer, Exception):
            assert isinstance(answer, (LeaseLostError, StoreUnavailableError))
            self._race.outage()
        for event in self.keeper.answered(answer):
            self._agent.see(event)
        self._write_report()
        self._create_missing()
        self._keep_lease()

    def _create_missing(self) -> None:
        """Write what never changes into a store that has lost it."""
        for key, value in sorted(self.view.missing.items()) if self.lease is not None else ():
            self.transact(store_writes.create(key, value), partial(self._created, key))

    def _created(self, key: str, answer: TxnResult | Exception) -> None:
        if isinstance(answer, TxnResult):
            self.view.missing.pop(key, None)

    # ---- reads and watches ---------------------------------------------------------------------

    def _read_again(self, then: Callable[[int], None], failed: Callable[[Exception], None]) -> None:
        """Read what every agent follows."""
        self._read(self.view.agents_keys, then, failed)

    def _read(
        self, keys: Keys, then: Callable[[int], None], failed: Callable[[Exception], None]
    ) -> None:
        def done(answer: tuple[tuple[list[KeyValue], int], int] | Exception) -> None:
            if isinstance(answer, Exception):
                failed(answer)
                return
            if epoch != self.view.epoch:
                # Asked of a store before it was known to have lost its data: it tells nothing.
                self._read(keys, then, failed)
                return
            (found, revision), cluster = answer
            self._tell(self.view.read(found, revision, keys, cluster=cluster, since=since))
            then(revision)

        epoch, since = self.view.epoch, self.view.revision
        self._world.store.request(
            self._agent, lambda model, now_s: (model.read(keys, now_s), model.cluster), done
        )

    def _read_and_watch(self) -> None:
        keys = self.view.to_watch

        def watch(revision: int) -> None:
            self._watched = (keys, self.view.epoch)
            self._tell(self.view.begins_to_watch(keys))
            self._stream = self._world.store.watch(
                self._agent, keys, revision + 1, self._changed, self._watch_again
            )
            self._watch_what_is_due()

        self._read(keys, watch, lambda _error: self._watch_again())

    def _watch_what_is_due(self) -> None:
        """Watch other keys than so far if it has been elected, or is root no more."""
        if (self.view.to_watch, self.view.epoch) != self._watched and self._stream is not None:
            self._stream.close()
            self._stream = None
            self._read_and_watch()

    def _watch_again(self) -> None:
        self._stream = None
        self._race.outage()
        self._agent.see(StoreLost())
        self._agent.later(RETRY_S, self._read_and_watch)

    def _changed(self, events: list[StoreEvent]) -> None:
        self._tell([told for event in events for told in self.view.change(event)])
        self._watch_what_is_due()

    def _tell(self, seen: Sequence[JobChange]) -> None:
        for event in seen:
            self._agent.see(event)
        self._claim()
        self._write_report()  # it may have gone

    def _claim(self) -> None:
        """Hold the name, or find that another life has it: an earlier one here, or a later one."""
        own = self.view.own_report
        holder = own.holder
        if own.is_claimed:
            self._claimed = True
            self._agent.claimed()
        elif holder is not None and self._claimed and own.in_question and self._waits(holder):
            self._claim_later()
        elif holder is not None and self._claimed:
            self._claimed = False
            self._agent.see(NameTaken(f"{holder.incarnation} is alive"))
        elif holder is not None:
            sign = self._world.sign_of(holder.incarnation, self._agent)
            match self._race.decide(holder, sign, self._agent.local_s()):
                case Verdict.TAKE:
                    own.bury(holder.incarnation)
                case Verdict.REFUSE:
                    self._agent.refuse(f"{holder.incarnation} has its name")
                case Verdict.WAIT:
                    self._claim_later()

    def _waits(self, holder: AgentReport) -> bool:
        verdict = self._race.decide(holder, Sign.UNKNOWN, self._agent.local_s())
        return verdict is Verdict.WAIT

    def _claim_later(self) -> None:
        if not self._waiting:
            self._waiting = True
            self._agent.later(RETRY_S, self._claim_again)

    def _claim_again(self) -> None:
        self._waiting = False
        self._claim()
        self._write_report()
