"""The agent's place in a real etcd: its lease, its report, elections, fences and outages."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from castor_configs.errors import InputError
from castor_policy.agents.agent_report import AgentReport, Life
from castor_policy.agents.effects import AskPersist, RequestMachine, WritePlan
from castor_policy.agents.events import (
    NameTaken,
    PersistChanged,
    PlanChanged,
    ReportChanged,
    RootChanged,
    SessionLost,
    SessionOpened,
    SessionRenewed,
    StoreLost,
)
from castor_policy.agents.followed_keys import roots_keys
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.own_report import Sign
from castor_policy.agents.plan import Plan
from castor_policy.agents.store_keys import (
    agents_prefix,
    layout_prefix,
    plan_key,
    requests_prefix,
    root_key,
)
from castor_policy.store import Delete, Keys, Put, StoreUnavailableError, Txn
from castor_runtime.agent.session import StoreSeen, StoreSession
from castor_runtime.stores import EmbeddedEtcd, open_store

pytestmark = pytest.mark.long  # all of it starts real processes, many times

PATIENCE_S = 60.0
EventT = TypeVar("EventT")


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedEtcd]:
    server = EmbeddedEtcd(tmp_path_factory.mktemp("etcd"))
    server.start()
    yield server
    server.stop()


def spec() -> JobSpec:
    return JobSpec(f"t{secrets.token_hex(4)}", 2, 1, "group", ((0, 1), (1, 0)), "train.py")


class Member:
    """A session with all that it has told."""

    def __init__(self, etcd: EmbeddedEtcd, job: JobSpec, name: str) -> None:
        self.name = name
        self.job = job
        self.seen: list[StoreSeen] = []
        self.store = open_store(etcd.url)
        self.session = StoreSession(self.store, job, name, self.seen.append)

    async def until(self, condition: Callable[[], object], what: str) -> None:
        for _ in range(round(PATIENCE_S / 0.01)):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{self.name} has not seen {what}: {self.seen[-10:]}")

    async def sees(self, kind: type[EventT], since: int = 0) -> EventT:
        def found() -> list[EventT]:
            return [event for event in self.seen[since:] if isinstance(event, kind)]

        await self.until(found, kind.__name__)
        return found()[-1]

    async def take_office(self) -> int:
        """Become root: who is sees what all report."""
        await self.session.campaign()
        await self.until(self.session.view.term_in_office, "itself as root")
        return self.session.view.term_in_office() or 0

    def report(self, **changes: object) -> AgentReport:
        told = AgentReport(self.name, "i1", False, "127.0.0.1:1", **changes)  # type: ignore[arg-type]
        self.session.report(told)
        return told


@asynccontextmanager
async def members(etcd: EmbeddedEtcd, job: JobSpec, *names: str) -> AsyncIterator[list[Member]]:
    found = [Member(etcd, job, name) for name in names]
    for member in found:
        member.session.open()
    try:
        for member in found:
            await member.sees(SessionOpened)
        yield found
    finally:
        for member in found:
            await member.session.close()


def plan(generation: int, term: int = 1) -> Plan:
    return Plan(generation, term, "gather", ("node-0", "node-1"), ("i1", "i1"))


def test_one_is_elected_and_the_next_one_only_once_it_has_gone(etcd: EmbeddedEtcd) -> None:
    async def elect() -> None:
        async with members(etcd, spec(), "node-0", "node-1") as (first, second):
            await asyncio.gather(first.session.campaign(), second.session.campaign())
            for member in (first, second):
                await member.until(lambda m=member: m.session.view.root(), "the root")
            key = first.session.view.root()
            assert key is not None
            assert key == second.session.view.root()
            winner, other = (first, second) if key.value == first.name else (second, first)
            assert key.value == winner.name
            assert winner.session.view.is_ours(key)
            assert winner.session.view.term() == key.create_revision
            assert not other.session.view.is_ours(key)
            assert other.session.view.term() is None
            await other.session.campaign()
            found, _ = await other.store.get_prefix(root_key(other.job.job))
            assert [(k.value, k.create_revision) for k in found] == [
                (key.value, key.create_revision)
            ]
            # A later life of the same agent is another root.
            async with members(etcd, winner.job, winner.name) as (again,):
                await again.until(lambda: again.session.view.root() is not None, "the root")
                assert not again.session.view.is_ours(key)
            since = len(other.seen)
            await winner.session.close()
            assert await other.sees(RootChanged, since) == RootChanged("")
            await other.session.campaign()
            await other.until(lambda: other.session.view.root() is not None, "itself as root")
            later = other.session.view.root()
            assert later is not None
            assert other.session.view.term() == later.create_revision > key.create_revision

    asyncio.run(elect())


def test_a_stale_term_and_a_stale_decision_are_refused(etcd: EmbeddedEtcd) -> None:
    async def write() -> None:
        async with members(etcd, spec(), "node-0", "node-1") as (root, other):
            await root.session.campaign()
            await root.until(lambda: root.session.view.term() is not None, "itself as root")
            term = root.session.view.term()
            assert term is not None
            write = root.session.write_as_root
            assert not await write(WritePlan(term - 1, plan(1), 0))
            assert await write(WritePlan(term, plan(1), 0))
            seen = await other.sees(PlanChanged)
            assert seen.plan == plan(1)
            # Decided before the plan that is there now: refused, though the term is right.
            assert not await write(WritePlan(term, plan(2), 0))
            assert await write(WritePlan(term, plan(2), seen.revision))
            await other.until(lambda: other.session.view.plan()[0] == plan(2), "generation 2")
            assert not await write(AskPersist(term + 1, 9))
            assert await write(AskPersist(term, 7))
            assert await other.sees(PersistChanged) == PersistChanged(7)
            assert await write(RequestMachine(term, "2-0"))
            found, _ = await other.store.get_prefix(requests_prefix(root.job.job))
            assert [(k.key, k.value) for k in found] == [
                (requests_prefix(root.job.job) + "2-0", "node-0")
            ]
            # Elected anew in between: what the old term still sends does nothing.
            await root.store.transact(Txn((), (Delete(root_key(root.job.job)),)))
            assert not await write(WritePlan(term, plan(3), other.session.view.plan()[1]))

    asyncio.run(write())


def test_who_is_elected_knows_all_before_it_takes_office_and_who_is_not_hears_nobody(
    etcd: EmbeddedEtcd,
) -> None:
    """What is said while the new root reads is neither missed nor told twice."""

    async def elect() -> None:
        async with members(etcd, spec(), "node-0", "node-1", "node-2") as (one, other, third):
            said = [one.report(iteration=1), third.report(iteration=1)]
            await one.until(lambda: one.session.view.reports() == said[:1], "its own report")
            read, more = other.session._read, iter(range(2, 99))

            async def read_while_others_speak(keys: Keys) -> int:
                revision = await read(keys)
                if keys == roots_keys(other.job.job):
                    said[:] = one.report(iteration=next(more)), third.report(iteration=next(more))
                    for member, told in zip((one, third), said, strict=True):
                        await member.until(
                            lambda m=member, t=told: m.session.view.reports() == [t], "its report"
                        )
                return revision

            other.session._read = read_while_others_speak  # type: ignore[method-assign]
            assert other.session.view.reports() == []
            await other.take_office()
            await other.until(lambda: other.session.view.reports() == said, "what was said")
            assert one.session.view.reports() == said[:1]
            heard = [e.report for e in other.seen if isinstance(e, ReportChanged)]
            assert len(heard) == len({report.to_json() for report in heard if report})
            # The first tells the worker that there is a root, the second that it may rule.
            roots = [e for e in other.seen if isinstance(e, RootChanged)]
            assert roots == [RootChanged(""), RootChanged("node-1"), RootChanged("node-1")]
            taken = len(other.seen) - other.seen[::-1].index(roots[-1])
            assert [e for e in other.seen[taken:] if isinstance(e, ReportChanged)]
            # Who is root no more hears nobody any more.
            await other.store.transact(Txn((), (Delete(root_key(other.job.job)),)))
            await one.take_office()
            await other.until(lambda: other.session.view.reports() == [], "only its own report")

    asyncio.run(elect())


def test_a_report_lives_as_long_as_its_agent(etcd: EmbeddedEtcd) -> None:
    async def tell() -> None:
        async with members(etcd, spec(), "node-0", "node-1") as (one, other):
            await other.take_office()
            told = one.report(generation=3, state="gathered", holdings={"0": (8, 9)})
            await other.until(lambda: told in other.session.view.reports(), "the report")
            newer = one.report(generation=3, state="loading")
            await other.until(lambda: newer in other.session.view.reports(), "the newer report")
            assert len(other.session.view.reports()) == 1
            since = len(other.seen)
            await one.session.close()
            assert await other.sees(ReportChanged, since) == ReportChanged("node-0", None)
            assert other.session.view.reports() == []

    asyncio.run(tell())


def test_a_report_is_written_once_unless_something_else_comes_after_it(etcd: EmbeddedEtcd) -> None:
    async def tell() -> None:
        async with members(etcd, spec(), "node-0", "node-1") as (one, other):
            assert one.seen[0] == RootChanged("")
            await other.take_office()
            key = agents_prefix(one.job.job) + one.name
            first = await one.store.get_prefix(key)
            # Said faster than a watch shows what was written: the watch then shows an older report.
            for iteration in range(40):
                one.report(iteration=iteration, state="loading")
                await asyncio.sleep(0)
                newest = one.report(iteration=iteration, state="running")
                await other.until(lambda r=newest: r in other.session.view.reports(), "the report")
            shown = [e.report for e in other.seen if isinstance(e, ReportChanged)]
            assert all(a != b for a, b in itertools.pairwise(shown))
            since = (await one.store.get_prefix(key))[1]
            await asyncio.sleep(0.5)
            assert (await one.store.get_prefix(key))[1] == since > first[1]
            # A write of this life that was given up comes late; then its key is deleted.
            late = replace(newest, iteration=1).to_json()
            for write in (Put(key, late, one.session._keeper.lease), Delete(key)):
                revision = (await other.store.transact(Txn((), (write,)))).revision
                await other.until(lambda r=revision: written_after(other, key, r), "the repair")
                assert other.session.view.reports() == [newest]

    def written_after(member: Member, key: str, revision: int) -> bool:
        found = member.session.view._documents.keys.get(key)
        return found is not None and found.mod_revision > revision

    asyncio.run(tell())


async def _sign(sign: Sign, _holder: AgentReport) -> Sign:
    return sign


def test_a_name_is_one_lifes_at_a_time(etcd: EmbeddedEtcd) -> None:
    async def claim() -> None:
        job, said = spec(), []
        life = Life(host="far", pid=7, since_ns=1_764_326_400 * 10**9)
        first_told = AgentReport("node-0", "i1", False, "10.0.0.1:9", life=life)
        second_told = replace(first_told, incarnation="i2", life=Life(host="near"))
        async with members(etcd, job, "node-0", "node-0", "node-1") as (first, second, other):
            await other.take_office()
            await first.session.claim(first_told, partial(_sign, Sign.ALIVE), said.append)
            await other.until(lambda: first_told in other.session.view.reports(), "the claim")
            with pytest.raises(InputError, match=r"on far \(10.0.0.1:9, pid 7\) since 2025-11-28"):
                await second.session.claim(second_told, partial(_sign, Sign.ALIVE), said.append)
            newer = replace(first_told, generation=1)
            first.session.report(newer)
            await other.until(lambda: newer in other.session.view.reports(), "the newer report")
            # Of a life that is proven dead nobody waits for the lease, nor sees the agent gone.
            since = len(other.seen)
            await second.session.claim(second_told, partial(_sign, Sign.DEAD), said.append)
            await other.until(lambda: second_told in other.session.view.reports(), "the second")
            assert ReportChanged("node-0", None) not in other.seen[since:]
            assert "agent node-0 is alive on near" in (await first.sees(NameTaken)).by
            first.session.report(replace(first_told, generation=2))
            await asyncio.sleep(0.3)
            assert other.session.view.reports() == [second_told]
            assert said == []

    asyncio.run(claim())


def test_who_cannot_prove_the_earlier_life_dead_waits_for_its_lease(etcd: EmbeddedEtcd) -> None:
    async def wait() -> None:
        job, said = spec(), []
        async with members(etcd, job, "node-0", "node-0") as (first, second):
            told = AgentReport("node-0", "i1", False, "h:1")
            await first.session.claim(told, partial(_sign, Sign.UNKNOWN), said.append)
            later = replace(told, incarnation="i2")
            claiming = asyncio.create_task(
                second.session.claim(later, partial(_sign, Sign.UNKNOWN), said.append)
            )
            await second.until(lambda: said, "why it waits")
            assert len(said) == 1
            assert said[0].startswith("waiting up to 5 s for the lease of an earlier node-0 to end")
            assert not claiming.done()
            await first.session.close()  # ends the lease, as its end by itself would
            await asyncio.wait_for(claiming, PATIENCE_S)
            await second.until(lambda: second.session.view.reports() == [later], "its own report")

    asyncio.run(wait())


def test_a_key_is_written_once(etcd: EmbeddedEtcd) -> None:
    async def write() -> None:
        async with members(etcd, spec(), "node-0", "node-1") as (one, other):
            key = layout_prefix(one.job.job) + "3"
            await one.session.write_once(key, "first")
            await other.session.write_once(key, "second")
            await other.until(other.session.layouts, "a layout")
            assert other.session.layouts() == {"3": "first"}

    asyncio.run(write())


def test_who_comes_later_is_told_the_plan_with_its_session(etcd: EmbeddedEtcd) -> None:
    async def come() -> None:
        job = spec()
        async with members(etcd, job, "node-0") as (one,):
            assert (await one.sees(SessionOpened)).plan is None
            await one.store.transact(Txn((), (Put(plan_key(job.job), plan(4).to_json()),)))
            async with members(etcd, job, "spare-0") as (late,):
                assert (await late.sees(SessionOpened)).plan == plan(4)

    asyncio.run(come())


def test_a_session_that_has_just_begun_can_end_at_any_moment(etcd: EmbeddedEtcd) -> None:
    async def come_and_go() -> None:
        job = spec()
        for step in range(40):
            member = Member(etcd, job, "node-0")
            member.session.open()
            await asyncio.sleep(step * 0.0005)
            # The watch is being made meanwhile; its last answer may come with the end.
            await asyncio.wait_for(member.session.close(), PATIENCE_S)

    asyncio.run(come_and_go())


def test_a_lost_lease_is_told_and_a_new_one_taken(etcd: EmbeddedEtcd) -> None:
    async def lose() -> None:
        async with members(etcd, spec(), "node-0", "node-1") as (one, other):
            await other.take_office()
            told = one.report(state="running")
            await other.until(lambda: told in other.session.view.reports(), "the report")
            lease = one.session._keeper.lease
            assert lease is not None
            since, others = len(one.seen), len(other.seen)
            await other.store.revoke(lease)
            assert await other.sees(ReportChanged, others)
            await one.sees(SessionLost, since)
            await one.sees(SessionOpened, since)
            kinds = [type(e) for e in one.seen[since:]]
            assert kinds.index(SessionLost) < kinds.index(SessionOpened)
            # Its report is there again without anybody asking for it.
            await other.until(lambda: told in other.session.view.reports(), "the report again")

    asyncio.run(lose())


def test_an_outage_of_the_store_is_told_and_survived(tmp_path: Path) -> None:
    server = EmbeddedEtcd(tmp_path / "etcd")

    async def live() -> None:
        job = spec()
        async with members(server, job, "node-0", "node-1") as (one, other):
            term = await other.take_office()
            told = one.report(state="running")
            await other.until(lambda: told in other.session.view.reports(), "the report")
            key = other.session.view.root()
            since = len(one.seen)
            server.kill()
            await one.sees(StoreLost, since)
            with pytest.raises(StoreUnavailableError):
                await other.session.write_as_root(WritePlan(term, plan(2), 0))
            newer = one.report(state="failed")
            writing = asyncio.create_task(one.session.write_once(layout_prefix(job.job) + "0", "x"))
            await asyncio.sleep(0.3)
            assert not writing.done()
            back = len(one.seen)
            server.restart()
            # The lease was written before the outage, and outlives it: nobody is lost.
            await one.sees(SessionRenewed, back)
            await asyncio.wait_for(writing, PATIENCE_S)
            await other.until(
                lambda: newer in other.session.view.reports(), "what was said meanwhile"
            )
            assert not any(isinstance(e, SessionLost) for e in [*one.seen, *other.seen])
            assert ReportChanged("node-0", None) not in other.seen
            assert one.session.view.root() == other.session.view.root() == key
            assert await other.session.write_as_root(WritePlan(term, plan(2), 0))
            await one.until(lambda: one.session.view.plan()[0] == plan(2), "the plan")
            revisions = [e.revision for e in one.seen if isinstance(e, PlanChanged)]
            assert all(a < b for a, b in itertools.pairwise(revisions))

    server.start()
    try:
        asyncio.run(live())
    finally:
        server.stop()
