"""The agent's place in the store: its lease, what it sees there, and what it writes.

What is seen, what it means and what is written is `castor_policy.agents`'; the simulator's session
drives the same. An unreachable store is normal here: reads and writes are repeated until it is
back, and who must decide something meanwhile is told `StoreLost`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TypeAlias

from castor_configs.errors import InputError
from castor_policy.agents import store_writes
from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.effects import RootWrite
from castor_policy.agents.events import AgentEvent, NameTaken, SessionFailed, StoreTrouble
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.lease_keeping import (
    RETRY_S,
    GrantLease,
    LeaseKeeper,
    LeaseStep,
    ReadAll,
    RenewLease,
    unanswered,
)
from castor_policy.agents.own_report import NameClaim, Sign, Verdict
from castor_policy.agents.store_view import StoreView
from castor_policy.agents.wish import Wish
from castor_policy.store import (
    Keys,
    LeaseLostError,
    Store,
    StoreUnavailableError,
)
from castor_runtime.agent.life import whereabouts

_LOOK_AGAIN_S = 0.05

StoreSeen: TypeAlias = AgentEvent


class StoreSession:
    """Keeps a lease, follows the job's keys, and writes in this agent's name.

    Args:
        store: of the job; this session closes it.
        spec: the job.
        agent: name of the agent.
        emit: gets what is seen, in order.
        serves: whether the agent still carries out what it is told; one that does not gives its
            lease up, so that another one is root and its place is filled.
        believes: says of a report whether its sender knows the job's secret.
    """

    def __init__(
        self,
        store: Store,
        spec: JobSpec,
        agent: str,
        emit: Callable[[StoreSeen], None],
        serves: Callable[[], bool] = lambda: True,
        believes: Callable[[AgentReport], bool] = lambda _: True,
    ) -> None:
        self.view = StoreView(spec.job, agent, believes)
        self._store = store
        self._spec = spec
        self._agent = agent
        self._emit = emit
        self._serves = serves
        self._keeper = LeaseKeeper(spec, self.view)
        self._race = NameClaim(spec.limits.lease_s)
        self._claimed = False
        self._to_write = asyncio.Event()
        self._changed = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []

    def open(self) -> None:
        """Begin to keep a lease, to watch and to write."""
        for work in (self._keep_lease, self._watch, self._write_reports):
            self._tasks.append(asyncio.create_task(self._observed(work)))

    async def _observed(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do the work for ever; what ends it is told, and it is begun anew.

        An agent that has lost one of its tasks would be deaf or dumb, and its lease would live on:
        if nothing of the work has gone well for a lease's time, the agent gives up its place.
        """
        failing_since_s = None
        while True:
            begun_s = time.monotonic()
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not end unseen
                now_s = time.monotonic()
                if failing_since_s is None or now_s - begun_s > RETRY_S:
                    failing_since_s = now_s
                reason = f"{work.__name__.strip('_')}: {type(error).__name__}: {error}"
                self._emit(StoreTrouble("task", reason))
                if now_s - failing_since_s > self._spec.limits.lease_s:
                    self._emit(SessionFailed(reason))
                    return
            await asyncio.sleep(RETRY_S)

    async def close(self) -> None:
        """End the lease, so that nobody waits for it to expire."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._keeper.held is not None:
            with contextlib.suppress(StoreUnavailableError):
                await self._store.revoke(self._keeper.held)
        await self._store.close()

    # ---- what is known -------------------------------------------------------------------------

    def layouts(self) -> dict[str, str]:
        """Return the documents under the layout's prefix by rank."""
        return self.view.layouts()

    async def wait_for_change(self) -> None:
        """Wait until any key of the job has changed."""
        async with self._changed:
            await self._changed.wait()

    # ---- writes --------------------------------------------------------------------------------

    def report(self, report: AgentReport) -> None:
        """Have the report written as soon as the store takes it; the newest one wins."""
        self.view.own_report.desired = report
        self._to_write.set()

    async def claim(
        self,
        report: AgentReport,
        sign: Callable[[AgentReport], Awaitable[Sign]],
        say: Callable[[str], None],
    ) -> None:
        """Claim the agent's name with its first report; return once it is this life's.

        Args:
            report: the first.
            sign: says what is known of the life that holds the name.
            say: told in a line if this has to wait.

        Raises:
            InputError: another life of that name is alive.
        """
        self.report(report)
        own, waits_for = self.view.own_report, ""
        while not own.is_claimed:
            holder = own.holder
            if holder is not None:
                match self._race.decide(holder, await sign(holder), time.monotonic()):
                    case Verdict.TAKE:
                        own.bury(holder.incarnation)
                        self._to_write.set()
                    case Verdict.REFUSE:
                        raise InputError(
                            f"agent {self._agent} of job {self._spec.job} is alive "
                            f"{whereabouts(holder)}: give this one another --name, or end that one"
                        )
                    case Verdict.WAIT if waits_for != holder.incarnation:
                        waits_for = holder.incarnation
                        say(
                            f"waiting up to {self._spec.limits.lease_s:g} s for the lease of an "
                            f"earlier {self._agent} to end; it was {whereabouts(holder)}"
                        )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await self.wait_for_change()
        self._claimed = True

    async def campaign(self) -> None:
        """Try to become root; whether that succeeded, and the term, is seen as any change is."""
        if self._keeper.lease is None:
            return
        txn = store_writes.campaign(self._spec.job, self._agent, self._keeper.lease)
        with contextlib.suppress(StoreUnavailableError, LeaseLostError):
            if not self.view.may_campaign():
                found, _ = await self._store.get_prefix(self.view.others_prefix)
                self.view.heard_of_others(found)
            if self.view.may_campaign():
                await self._store.transact(txn)

    async def depose(self, root: str) -> None:
        """Take the office from a root whose machine is lost by what all agents say."""
        with contextlib.suppress(StoreUnavailableError):
            found, _ = await self._store.get_prefix(self.view.others_prefix)
            term = self.view.term_to_end(self._spec, root, found)
            if term is not None:
                await self._store.transact(store_writes.end_term(self._spec.job, term))

    async def wish(self, wanted: Wish) -> None:
        """Ask the job's root for something; a store that does not answer is asked again later."""
        with contextlib.suppress(StoreUnavailableError):
            await self._store.transact(store_writes.wish(self._spec.job, wanted))

    async def write_as_root(self, write: RootWrite) -> bool:
        """Carry out what the root decided, if its term still is; return whether that was done.

        Raises:
            StoreUnavailableError: the store does not answer; the write may happen or not.
        """
        txn = store_writes.root_write(self._spec.job, self._agent, write)
        return (await self._store.transact(txn)).succeeded

    async def write_once(self, key: str, value: str) -> None:
        """Create a key that nobody changes later; who comes second leaves it as it is."""
        while True:
            try:
                await self._store.transact(store_writes.create(key, value))
            except StoreUnavailableError as error:
                self._unavailable(error)
                await asyncio.sleep(RETRY_S)
            else:
                return

    def _unavailable(self, error: StoreUnavailableError) -> None:
        self._race.outage()
        for event in unanswered(error):
            self._emit(event)

    # ---- tasks ---------------------------------------------------------------------------------

    async def _keep_lease(self) -> None:
        keeper = self._keeper
        while True:
            step = keeper.step
            await asyncio.sleep(step.wait_s)
            while not self._serves():
                await asyncio.sleep(RETRY_S)
            keeper.sent(time.monotonic())
            answer: int | float | LeaseLostError | StoreUnavailableError | None
            try:
                answer = await self._ask(step)
            except (LeaseLostError, StoreUnavailableError) as error:
                answer = error
            if isinstance(answer, StoreUnavailableError):
                self._race.outage()
            for event in keeper.answered(answer):
                self._emit(event)
            self._check_name()
            self._to_write.set()
            if self.view.missing and keeper.lease is not None:
                await self._create_missing()

    async def _create_missing(self) -> None:
        """Write what never changes into a store that has lost it."""
        with contextlib.suppress(StoreUnavailableError):
            for key, value in list(self.view.missing.items()):
                await self._store.transact(store_writes.create(key, value))
                del self.view.missing[key]

    async def _retire(self, written_under: int) -> None:
        """Revoke the lease from before the store lost data, once the report is under its own."""
        if self._keeper.retired is not None and written_under == self._keeper.lease:
            await self._store.revoke(self._keeper.retired)
            self._keeper.retired = None

    async def _ask(self, step: LeaseStep) -> int | float | None:
        match step:
            case GrantLease(_, ttl_s):
                return await self._store.grant(ttl_s)
            case RenewLease(_, lease):
                return await self._store.keep_alive(lease)
            case ReadAll():
                await self._read(self.view.agents_keys)
                return None

    async def _watch(self) -> None:
        while True:
            keys = self.view.to_watch
            try:
                revision = await self._read(keys)
                epoch = self.view.epoch
                await self._tell(self.view.begins_to_watch(keys))
                self._emit(StoreTrouble("history", ""))
                async with aclosing(self._store.follow(keys, revision + 1)) as changes:
                    while (self.view.to_watch, self.view.epoch) == (keys, epoch):
                        events = await anext(changes)
                        await self._tell([t for event in events for t in self.view.change(event)])
            except StoreUnavailableError as error:
                self._unavailable(error)
                await asyncio.sleep(RETRY_S)

    async def _read(self, keys: Keys) -> int:
        # What was asked of a store before it was known to have lost its data tells nothing.
        epoch = -1
        while epoch != self.view.epoch:
            epoch, since = self.view.epoch, self.view.revision
            found, revision = await self._store.read(keys)
        # A stand-in of a test may be one store and no cluster.
        tell_cluster = getattr(self._store, "cluster", None)
        cluster = tell_cluster() if tell_cluster is not None else 0
        await self._tell(self.view.read(found, revision, keys, cluster=cluster, since=since))
        return revision

    async def _tell(self, seen: Sequence[StoreSeen]) -> None:
        for event in seen:
            self._emit(event)
        self._check_name()
        self._to_write.set()  # the own report may have gone
        await self._wake()

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _check_name(self) -> None:
        """Find out that another life has this one's name."""
        own = self.view.own_report
        holder = own.holder
        if not self._claimed or holder is None:
            return
        waits = own.in_question and (
            self._race.decide(holder, Sign.UNKNOWN, time.monotonic()) is Verdict.WAIT
        )
        if not waits:
            self._claimed = False
            self._emit(NameTaken(f"agent {self._agent} is alive {whereabouts(holder)}"))

    async def _write_reports(self) -> None:
        own = self.view.own_report
        while True:
            await self._to_write.wait()
            self._to_write.clear()
            lease = self._keeper.lease
            write = own.wanted(lease)
            if lease is None or write is None:
                continue
            try:
                epoch = self.view.epoch
                txn = store_writes.report(self._spec.job, write, lease)
                answer = await self._store.transact(txn)
                self._emit(StoreTrouble("space", ""))
                if not answer.succeeded:
                    # What stands there is not what was known.
                    await self._read(self.view.agents_keys)
                elif epoch == self.view.epoch:
                    own.written(lease, write, answer.revision)
                    await self._wake()
                    await self._retire(lease)
                self._to_write.set()  # a newer one may be there
            except LeaseLostError:
                continue  # the next session writes it
            except StoreUnavailableError as error:
                self._unavailable(error)
                await asyncio.sleep(RETRY_S)
                self._to_write.set()
