"""The agent's place in the store: its lease, what it sees there, and what it writes.

An unreachable store is normal here: reads and writes are repeated until it is back, and who
must decide something meanwhile is told `StoreLost`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import TypeAlias

from castor_policy.agents.documents import (
    AgentReport,
    JobSpec,
    Plan,
    agents_prefix,
    job_prefix,
    layout_prefix,
    persist_key,
    plan_key,
    requests_prefix,
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
    Store,
    StoreEvent,
    StoreUnavailableError,
    Txn,
)

_RETRY_S = 0.2

StoreSeen: TypeAlias = WorkerEvent | ReportChanged


class StoreSession:
    """Keeps a lease, follows the job's keys, and writes in this agent's name.

    Args:
        store: of the job; this session closes it.
        spec: the job.
        agent: name of the agent.
        emit: gets what is seen, in order.
    """

    def __init__(
        self, store: Store, spec: JobSpec, agent: str, emit: Callable[[StoreSeen], None]
    ) -> None:
        self._store = store
        self._spec = spec
        self._agent = agent
        self._emit = emit
        self._lease: int | None = None
        self._keys: dict[str, KeyValue] = {}
        self._seen_revision: dict[str, int] = {}
        self._born_revision = -1
        self._report: AgentReport | None = None
        self._overwritten = 0
        self._to_write = asyncio.Event()
        self._changed = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []

    def open(self) -> None:
        """Begin to keep a lease, to watch and to write."""
        for work in (self._keep_lease(), self._watch(), self._write_reports()):
            self._tasks.append(asyncio.create_task(work))

    async def close(self) -> None:
        """End the lease, so that nobody waits for it to expire."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._lease is not None:
            with contextlib.suppress(StoreUnavailableError):
                await self._store.revoke(self._lease)
        await self._store.close()

    # ---- what is known -------------------------------------------------------------------------

    def root(self) -> KeyValue | None:
        """Return the root's key as last seen."""
        return self._keys.get(root_key(self._spec.job))

    def is_ours(self, root: KeyValue) -> bool:
        """Whether the root's key was created by this life of the agent, not by an earlier one."""
        return root.value == self._agent and root.create_revision > self._born_revision

    def plan(self) -> tuple[Plan | None, int]:
        """Return the plan as last seen, and the revision of its last change."""
        found = self._keys.get(plan_key(self._spec.job))
        return (None, 0) if found is None else (Plan.from_json(found.value), found.mod_revision)

    def reports(self) -> list[AgentReport]:
        """Return every agent's report as last seen."""
        prefix = agents_prefix(self._spec.job)
        return [AgentReport.from_json(k.value) for n, k in self._keys.items() if _in(n, prefix)]

    def layouts(self) -> dict[str, str]:
        """Return the documents under the layout's prefix by rank."""
        prefix = layout_prefix(self._spec.job)
        return {n[len(prefix) :]: k.value for n, k in self._keys.items() if _in(n, prefix)}

    async def wait_for_change(self) -> None:
        """Wait until any key of the job has changed."""
        async with self._changed:
            await self._changed.wait()

    # ---- writes --------------------------------------------------------------------------------

    def report(self, report: AgentReport) -> None:
        """Have the report written as soon as the store takes it; the newest one wins."""
        self._report = report
        self._to_write.set()

    async def campaign(self) -> bool:
        """Try to become root; the term is the key's create revision, as the watch shows it."""
        lease = self._lease
        if lease is None:
            return False
        key = root_key(self._spec.job)
        try:
            txn = Txn((Compare(key, create_revision=0),), (Put(key, self._agent, lease),))
            return (await self._store.transact(txn)).succeeded
        except (StoreUnavailableError, LeaseLostError):
            return False

    async def write_plan(self, term: int, plan: Plan, after: int) -> bool:
        """Write the plan if this term still is, and the plan is the one that was decided on.

        Raises:
            StoreUnavailableError: the store does not answer; the write may come about or not.
        """
        key = plan_key(self._spec.job)
        fence = Compare(root_key(self._spec.job), create_revision=term)
        txn = Txn((fence, Compare(key, mod_revision=after)), (Put(key, plan.to_json()),))
        return (await self._store.transact(txn)).succeeded

    async def write_fenced(self, term: int, key: str, value: str) -> bool:
        """Write a key if this term still is.

        Raises:
            StoreUnavailableError: the store does not answer; the write may come about or not.
        """
        fence = Compare(root_key(self._spec.job), create_revision=term)
        return (await self._store.transact(Txn((fence,), (Put(key, value),)))).succeeded

    async def write_once(self, key: str, value: str) -> None:
        """Create a key that nobody changes later; who comes second leaves it as it is."""
        while True:
            try:
                await self._store.transact(
                    Txn((Compare(key, create_revision=0),), (Put(key, value),))
                )
            except StoreUnavailableError:
                self._emit(StoreLost())
                await asyncio.sleep(_RETRY_S)
            else:
                return

    def request_key(self, request: str) -> str:
        """Return the key of a request for a machine."""
        return requests_prefix(self._spec.job) + request

    # ---- tasks ---------------------------------------------------------------------------------

    async def _keep_lease(self) -> None:
        while True:
            try:
                self._lease = await self._store.grant(self._spec.lease_s)
                await self._read_all()
                # What was decided while there was no lease is known before anything is said.
                self._emit(SessionOpened(self.plan()[0]))
                self._to_write.set()
                while True:
                    await self._renew()
            except LeaseLostError:
                self._lease = None
                self._emit(SessionLost())
            except StoreUnavailableError:
                self._emit(StoreLost())
                await asyncio.sleep(_RETRY_S)

    async def _renew(self) -> None:
        assert self._lease is not None
        sent_s = time.monotonic()
        try:
            await self._store.keep_alive(self._lease)
        except StoreUnavailableError:
            self._emit(StoreLost())
            await asyncio.sleep(_RETRY_S)
        else:
            self._emit(SessionRenewed(sent_s))
            await asyncio.sleep(self._spec.lease_s / 4)

    async def _watch(self) -> None:
        prefix = job_prefix(self._spec.job)
        while True:
            try:
                revision = await self._read_all()
                async for events in self._store.watch(prefix, revision + 1):
                    for event in events:
                        self._see(event)
                    await self._wake()
            except StoreUnavailableError:
                self._emit(StoreLost())
                await asyncio.sleep(_RETRY_S)

    async def _read_all(self) -> int:
        found, revision = await self._store.get_prefix(job_prefix(self._spec.job))
        if self._born_revision < 0:
            self._born_revision = revision
        present = {item.key: item for item in found}
        for key in sorted(set(self._keys) - set(present)):
            if self._keys[key].mod_revision <= revision:
                self._see(StoreEvent(key, None, 0, revision))
        for item in found:
            self._see(StoreEvent(item.key, item.value, item.create_revision, item.mod_revision))
        await self._wake()
        return revision

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _see(self, event: StoreEvent) -> None:
        """Take a change in, unless a later one of that key is known already."""
        key = event.key
        if event.mod_revision <= self._seen_revision.get(key, 0):
            return
        self._seen_revision[key] = event.mod_revision
        if event.value is None:
            self._keys.pop(key, None)
        else:
            self._keys[key] = KeyValue(
                key, event.value, event.create_revision, event.mod_revision, None
            )
        self._tell(event)

    def _tell(self, event: StoreEvent) -> None:
        job, key, value = self._spec.job, event.key, event.value
        if key == plan_key(job) and value is not None:
            self._emit(PlanChanged(Plan.from_json(value), event.mod_revision))
        elif key == root_key(job):
            self._emit(RootChanged(value or ""))
        elif key == persist_key(job) and value is not None:
            self._emit(PersistChanged(int(value)))
        elif _in(key, agents_prefix(job)):
            name = key[len(agents_prefix(job)) :]
            report = None if value is None else AgentReport.from_json(value)
            if name == self._agent and report is not None and report != self._report:
                # A write that was given up has arrived after a newer one: write that again.
                self._overwritten += 1
                self._to_write.set()
            self._emit(ReportChanged(name, report))

    async def _write_reports(self) -> None:
        written: tuple[int, AgentReport, int] | None = None
        while True:
            await self._to_write.wait()
            self._to_write.clear()
            lease, report, overwritten = self._lease, self._report, self._overwritten
            if lease is None or report is None or written == (lease, report, overwritten):
                continue
            key = agents_prefix(self._spec.job) + self._agent
            try:
                await self._store.transact(Txn((), (Put(key, report.to_json(), lease),)))
                written = (lease, report, overwritten)
            except LeaseLostError:
                continue  # the next session writes it
            except StoreUnavailableError:
                await asyncio.sleep(_RETRY_S)
                self._to_write.set()


def _in(key: str, prefix: str) -> bool:
    return key.startswith(prefix) and len(key) > len(prefix)
