"""A store that loses data, goes back, fills up, compacts, or holds what nobody can read."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.events import (
    PersistChanged,
    ReportChanged,
    RootChanged,
    SessionFailed,
    SessionOpened,
    StoreLost,
    StoreTrouble,
)
from castor_policy.agents.followed_keys import roots_keys
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Plan
from castor_policy.agents.store_keys import agents_prefix, layout_prefix, plan_key, spec_key
from castor_policy.membership import WatchLimits
from castor_policy.store import (
    Keys,
    KeyValue,
    Put,
    Store,
    StoreFullError,
    StoreUnavailableError,
    Txn,
)
from castor_runtime.agent.session import StoreSeen, StoreSession
from castor_runtime.launcher.job_view import read_view
from castor_runtime.launcher.stored_job import StoredJob
from castor_runtime.stores import EmbeddedEtcd, open_store
from castor_sim.model_store import ModelStore
from castor_sim.store_model import StoreModel

pytestmark = pytest.mark.long  # together, not one by one

PATIENCE_S = 60.0
SPEC = JobSpec("j", 2, 1, "group", ((0, 1), (1, 0)), "train.py", limits=WatchLimits(lease_s=2.0))
PLAN = Plan(3, 1, "load", ("node-0", "node-1"), ("i1", "i1"))


class Member:
    """A session with all that it has told."""

    def __init__(self, etcd: EmbeddedEtcd, name: str) -> None:
        self.seen: list[StoreSeen] = []
        self.store = open_store(etcd.url)
        self.session = StoreSession(self.store, SPEC, name, self.seen.append)
        self.told = AgentReport(name, "i1", False, "127.0.0.1:1", 3, "running")

    async def until(self, condition: Callable[[], object], what: str) -> None:
        for _ in range(round(PATIENCE_S / 0.01)):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"has not seen {what}: {self.seen[-10:]}")

    def troubles(self, about: str) -> list[str]:
        return [e.reason for e in self.seen if isinstance(e, StoreTrouble) and e.about == about]


@asynccontextmanager
async def members(etcd: EmbeddedEtcd, *names: str) -> AsyncIterator[list[Member]]:
    found = [Member(etcd, name) for name in names]
    for member in found:
        member.session.open()
        member.session.report(member.told)
    try:
        for member in found:
            await member.until(lambda m=member: m.session.view.reports() == [m.told], "its own")
        yield found
    finally:
        for member in found:
            await member.session.close()


def tell(story: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(story(), 2 * PATIENCE_S)

    asyncio.run(bounded())


async def start(member: Member) -> None:
    """Have a job with a root and a plan in the store."""
    store = member.store
    layout = Put(layout_prefix("j") + "0", "layout")
    await store.transact(Txn((), (Put(spec_key("j"), SPEC.to_json()), layout)))
    await store.transact(Txn((), (Put(plan_key("j"), PLAN.to_json()),)))
    await member.until(lambda: member.session.view.plan()[0] == PLAN, "the plan")
    await take_office(member)


async def take_office(member: Member) -> None:
    """Become root: who is sees what all report."""
    await member.session.campaign()
    await member.until(member.session.view.term_in_office, "itself as root")


@pytest.mark.parametrize("loss", ["wiped", "restored"])
def test_a_store_that_lost_its_data_is_joined_anew_by_all(
    etcd: EmbeddedEtcd, tmp_path: Path, loss: str
) -> None:
    data, backup = tmp_path / "etcd" / "data", tmp_path / "backup"

    async def story() -> None:
        async with members(etcd, "node-0", "node-1") as (one, other):
            if loss == "restored":
                # Before there was a plan; the backup has the reports, and their leases.
                etcd.kill()
                shutil.copytree(data, backup)
                etcd.start()
            await start(one)
            await other.until(lambda: other.session.view.plan()[0] == PLAN, "the plan")
            etcd.kill()
            shutil.rmtree(data)
            if loss == "restored":
                shutil.copytree(backup, data)
            since = [len(one.seen), len(other.seen)]
            etcd.start()
            for member, before, followed in zip((one, other), since, (2, 1), strict=True):
                await member.until(lambda m=member: m.session.view.epoch == 1, "the loss")
                await member.until(
                    lambda m=member: m.session.view.reports() == [m.told], "its own report"
                )
                await member.until(lambda m=member: m.session._keeper.retired is None, "one lease")
                gone = [e for e in member.seen[before:] if isinstance(e, ReportChanged)]
                assert sum(e.report is None for e in gone) == followed, "each once: by the loss"
                assert any("lost data" in reason for reason in member.troubles("data"))
                await member.until(
                    lambda m=member, b=before: any(
                        isinstance(e, SessionOpened) for e in m.seen[b:]
                    ),
                    "a fresh session",
                )
                assert member.session.view.known_plan() == PLAN
                assert member.session.view.term() is None
                assert RootChanged("") in member.seen[before:]
            # What never changes is there again, and a root is elected in the new store.
            key = layout_prefix("j") + "0"
            while {spec_key("j"), key} - {
                k.key for k in (await one.store.get_prefix("/castor/"))[0]
            }:
                await asyncio.sleep(0.01)
            await one.until(lambda: not one.session.view.missing, "nothing missing")
            await take_office(other)
            await other.until(
                lambda: other.session.view.reports() == [one.told, other.told], "both reports"
            )
            # Its word is heard by all: nobody is deaf to the new store's small revisions.
            await other.store.transact(Txn((), (Put(plan_key("j"), PLAN.to_json()),)))
            await one.until(lambda: one.session.view.plan()[0] == PLAN, "the plan")

    tell(story)


def test_a_store_without_space_is_told_and_joined_again_once_there_is_some(
    etcd: EmbeddedEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    etcd.stop()
    monkeypatch.setenv("ETCD_QUOTA_BACKEND_BYTES", "2000000")
    etcd.start()

    async def story() -> None:
        async with members(etcd, "node-0", "node-1") as (one, other):
            await start(other)

            async def fill() -> None:
                for _ in range(200):
                    await other.store.transact(Txn((), (Put("/castor/other/x", "x" * 50_000),)))

            with pytest.raises(StoreFullError, match="space"):
                await fill()
            with pytest.raises(StoreFullError):
                await other.store.grant(5)
            newer = AgentReport("node-0", "i1", False, "127.0.0.1:1", 4, "running")
            one.session.report(newer)
            await one.until(lambda: one.troubles("space"), "that there is no space")
            # Leases live on: nobody is lost.
            await asyncio.sleep(SPEC.limits.lease_s * 1.5)
            assert len(other.session.view.reports()) == 2
            assert not any(isinstance(e, StoreLost) for e in one.seen)
            etcd.stop()
            monkeypatch.setenv("ETCD_QUOTA_BACKEND_BYTES", "0")
            etcd.start()
            await other.store.disarm()
            await other.until(lambda: newer in other.session.view.reports(), "what was said")
            await one.until(lambda: one.troubles("space")[-1] == "", "that there is space again")

    tell(story)


def test_a_document_of_no_meaning_is_set_aside_by_agents_and_launcher(etcd: EmbeddedEtcd) -> None:
    async def story() -> None:
        async with members(etcd, "node-0", "node-1") as (one, other):
            await start(one)
            views: list[int] = []

            async def changed(view: object) -> None:
                views.append(1)

            job = StoredJob(open_store(etcd.url), SPEC)
            following = asyncio.create_task(job.follow(changed))
            await one.until(lambda: views, "the launcher")
            stranger = agents_prefix("j") + "node-9"
            puts = [Put(stranger, '{"agent":"node-9","of_a_later_version":1}')]
            puts += [Put(agents_prefix("j") + "node-1", "no json"), Put(plan_key("j"), "{}")]
            await one.store.transact(Txn((), tuple(puts)))
            await one.until(lambda: one.troubles(stranger), "the stranger")
            # Its own agent has written its report again; a plan is the root's to mend.
            await one.until(lambda: len(one.session.view.reports()) == 2, "both reports")
            for member in (one, other):
                await member.until(lambda m=member: m.troubles(plan_key("j")), "the plan's end")
                assert member.session.view.known_plan() == PLAN
            assert job.view is not None
            await one.until(lambda: set(job.view.set_aside) == {stranger, plan_key("j")}, "both")
            assert not following.done()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await job.close()

    tell(story)


async def stored_spec(store: Store) -> JobSpec | None:
    try:
        return (await read_view(store, SPEC.job)).spec
    except StoreUnavailableError:
        return None


def test_the_launcher_writes_the_spec_into_a_store_that_lost_it(
    etcd: EmbeddedEtcd, tmp_path: Path
) -> None:
    async def story() -> None:
        job = StoredJob(open_store(etcd.url), SPEC)
        await job.write()

        async def changed(_: object) -> None:
            pass

        following = asyncio.create_task(job.follow(changed))
        for _ in range(50):  # so that the new store is behind
            await job._store.transact(Txn((), (Put("/castor/other/x", ""),)))
        etcd.kill()
        shutil.rmtree(tmp_path / "etcd" / "data")
        etcd.start()
        async with asyncio.timeout(PATIENCE_S):
            while await stored_spec(job._store) != SPEC:
                await asyncio.sleep(0.01)
            # Written first and seen afterwards: a loaded machine shows the time between.
            while job.view is None or job.view.spec != SPEC:
                await asyncio.sleep(0.01)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await job.close()

    tell(story)


def test_a_watch_that_was_compacted_reads_again_and_says_so(etcd: EmbeddedEtcd) -> None:
    """The model's store: etcd compacts only what a stopped agent has not read."""

    async def story() -> None:
        model = StoreModel()
        seen: list[StoreSeen] = []
        session = StoreSession(ModelStore(model, lambda: 0.0), SPEC, "node-0", seen.append)
        read = session._read

        async def slow(keys: Keys) -> int:
            revision = await read(keys)
            for _ in range(9):
                model.transact(Txn((), (Put("/castor/j/persist", "4"),)), 0.0)
            model.compact(model.revision)
            return revision

        session._read = slow  # type: ignore[method-assign]
        session.open()
        async with asyncio.timeout(PATIENCE_S):
            while not any(isinstance(e, StoreTrouble) and e.about == "history" for e in seen):
                await asyncio.sleep(0.01)
        session._read = read  # type: ignore[method-assign]
        # It goes on: what comes later is seen.
        await asyncio.sleep(0.3)
        model.transact(Txn((), (Put("/castor/j/persist", "5"),)), 0.0)
        async with asyncio.timeout(PATIENCE_S):
            while PersistChanged(5) not in seen:
                await asyncio.sleep(0.01)
        await session.close()

    tell(story)


@pytest.mark.parametrize("broken", ["read", "keep_alive", "transact"])
def test_a_task_that_fails_is_told_and_begun_anew_and_ends_the_session_if_it_goes_on(
    broken: str,
) -> None:
    """Never deaf or dumb while the lease lives on."""

    class Failing(ModelStore):
        failures = 0
        most = 2

        def __getattribute__(self, name: str) -> object:
            if name == broken and self.failures < self.most:
                self.failures += 1
                raise RuntimeError(f"{name} is broken")
            return super().__getattribute__(name)

    async def story(most: int) -> list[StoreSeen]:
        seen: list[StoreSeen] = []
        store = Failing(StoreModel(), lambda: 0.0)
        store.most = most
        spec = JobSpec(
            "j", 2, 1, "group", ((0, 1), (1, 0)), "train.py", limits=WatchLimits(lease_s=1.0)
        )
        session = StoreSession(store, spec, "node-0", seen.append)
        session.open()
        session.report(AgentReport("node-0", "i1", False, "h:1"))
        async with asyncio.timeout(PATIENCE_S):
            while not any(isinstance(e, SessionFailed) for e in seen) and not (
                most < 9 and session.view.reports()
            ):
                await asyncio.sleep(0.01)
        await session.close()
        return seen

    survived = asyncio.run(story(2))
    reasons = [e.reason for e in survived if isinstance(e, StoreTrouble) and e.about == "task"]
    assert any(f"{broken} is broken" in reason for reason in reasons)
    assert not any(isinstance(e, SessionFailed) for e in survived)
    failed = asyncio.run(story(10_000))
    assert any(isinstance(e, SessionFailed) and "is broken" in e.reason for e in failed)


def test_what_was_asked_before_the_loss_was_known_tells_nothing() -> None:
    """Two reads were under way when the store came back without its data: it lost data once."""
    there = KeyValue(spec_key("j"), SPEC.to_json(), 30, 30, None)
    new = KeyValue(agents_prefix("j") + "node-1", "no report", 2, 2, 7)
    late = asyncio.Event()
    answers = [([there], 33), ([], 1), ([new], 2), ([new], 2)]

    class Overtaken(ModelStore):
        async def read(self, _keys: Keys) -> tuple[list[KeyValue], int]:
            answer = answers.pop(0)
            if answer == ([], 1):
                await late.wait()
            return answer

    async def story() -> None:
        store = Overtaken(StoreModel(), lambda: 0.0)
        session = StoreSession(store, SPEC, "node-0", lambda _event: None)
        keys = roots_keys("j")
        await session._read(keys)
        overtaken, other = (asyncio.create_task(session._read(keys)) for _ in range(2))
        await other
        assert session.view.epoch == 1
        late.set()
        async with asyncio.timeout(PATIENCE_S):
            assert await overtaken == 2
        assert (session.view.epoch, answers) == (1, [])
        await session.close()

    asyncio.run(story())
