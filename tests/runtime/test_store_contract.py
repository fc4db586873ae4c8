"""What `castor_policy.store` promises, held against etcd and the simulator's model."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castor_policy.store import (
    Compare,
    Delete,
    DeletePrefix,
    KeyValue,
    LeaseLostError,
    Put,
    Store,
    StoreEvent,
    StoreUnavailableError,
    Txn,
    TxnResult,
)
from castor_runtime.stores import EmbeddedEtcd, open_store
from castor_runtime.stores.etcd_client import Etcd3Client
from castor_sim.model_store import ModelStore
from castor_sim.store_model import StoreModel

pytestmark = pytest.mark.long  # together, not one by one

PATIENCE_S = 60.0
"""How long a test waits for what must come; never for what takes its time."""


class EtcdWorld:
    """etcd, and the time that a wall clock shows."""

    def __init__(self, etcd: EmbeddedEtcd) -> None:
        self._etcd = etcd

    def open(self) -> Store:
        return open_store(self._etcd.url)

    async def elapse(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def stop(self) -> None:
        self._etcd.kill()

    def start(self) -> None:
        self._etcd.start()

    def compact(self, revision: int) -> None:
        host, port = self._etcd.endpoint
        client = Etcd3Client(host=host, port=port, timeout=PATIENCE_S)
        client.compact(revision)
        client.close()


class ModelWorld:
    """The simulator's store, and a clock moved by hand."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._model = StoreModel()

    def open(self) -> Store:
        return ModelStore(self._model, lambda: self._now_s)

    async def elapse(self, seconds: float) -> None:
        self._now_s += seconds

    def stop(self) -> None:
        self._model.stop(self._now_s)

    def start(self) -> None:
        self._model.start(self._now_s)

    def compact(self, revision: int) -> None:
        self._model.compact(revision)


class RunningModelWorld(ModelWorld):
    """The simulator's store on the wall's clock: what a job in one process has."""

    def open(self) -> Store:
        return ModelStore(self._model, self._now, poll_s=0.002)

    async def elapse(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def stop(self) -> None:
        self._model.stop(self._now())

    def start(self) -> None:
        self._model.start(self._now())

    @staticmethod
    def _now() -> float:
        return time.monotonic()


World = EtcdWorld | ModelWorld


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedEtcd]:
    server = EmbeddedEtcd(tmp_path_factory.mktemp("etcd"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["etcd", "model", "running model"])
def world(request: pytest.FixtureRequest) -> World:
    if request.param == "model":
        return ModelWorld()
    if request.param == "running model":
        return RunningModelWorld()
    return EtcdWorld(request.getfixturevalue("etcd"))


_numbers = itertools.count()


@pytest.fixture
def here() -> str:
    """A prefix of the test's own: the tests share one etcd."""
    return f"test-{next(_numbers)}/"


def tell(story: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(story(), 2 * PATIENCE_S)

    asyncio.run(bounded())


@asynccontextmanager
async def opened(world: World) -> AsyncIterator[Store]:
    store = world.open()
    try:
        yield store
    finally:
        await store.close()


async def read_until(store: Store, prefix: str, revision: int, last: int) -> list[list[StoreEvent]]:
    """Watch from `revision` until a batch reaches `last`."""
    batches: list[list[StoreEvent]] = []
    async with asyncio.timeout(PATIENCE_S), aclosing(store.watch(prefix, revision)) as watch:
        async for batch in watch:
            batches.append(batch)
            if batch[-1].mod_revision >= last:
                break
    return batches


async def answered(call: Callable[[], Awaitable[object]]) -> None:
    """Repeat a call until the store is back."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await call()
            except StoreUnavailableError:
                await asyncio.sleep(0.01)
            else:
                return


def values(found: tuple[list[KeyValue], int]) -> dict[str, str]:
    return {pair.key: pair.value for pair in found[0]}


def put(key: str, value: str, lease: int | None = None) -> Txn:
    return Txn((), (Put(key, value, lease),))


def test_one_of_many_creates_a_key(world: World, here: str) -> None:
    async def story() -> None:
        async with opened(world) as one, opened(world) as other:
            stores = [one, other] * 5
            results = await asyncio.gather(
                *(
                    store.transact(Txn((Compare(f"{here}root", 0),), (Put(f"{here}root", str(i)),)))
                    for i, store in enumerate(stores)
                )
            )
            winners = [i for i, result in enumerate(results) if result.succeeded]
            assert len(winners) == 1
            [pair], _ = await one.get_prefix(here)
            assert pair.value == str(winners[0])
            assert pair.create_revision == pair.mod_revision == results[winners[0]].revision

    tell(story)


def test_a_stale_root_is_fenced_off(world: World, here: str) -> None:
    async def story() -> None:
        async with opened(world) as stale, opened(world) as fresh:
            root, plan = f"{here}root", f"{here}plan"
            lease = await stale.grant(10)
            old = await stale.transact(Txn((Compare(root, 0),), (Put(root, "a", lease),)))
            guarded = Txn((Compare(root, old.revision),), (Put(plan, "by a"),))
            assert (await stale.transact(guarded)).succeeded
            await fresh.revoke(lease)
            new = await fresh.transact(Txn((Compare(root, 0),), (Put(root, "b"),)))
            assert new.succeeded
            assert new.revision > old.revision
            for guard in (old.revision, 0):
                late = await stale.transact(
                    Txn((Compare(root, guard),), (Put(plan, "by a again"), Delete(root)))
                )
                assert not late.succeeded
            # A change of the value is no new life of the key.
            await fresh.transact(put(root, "b, still"))
            guarded = Txn((Compare(root, new.revision),), (Put(plan, "by b"),))
            assert (await fresh.transact(guarded)).succeeded
            assert values(await fresh.get_prefix(here)) == {root: "b, still", plan: "by b"}

    tell(story)


def test_what_was_decided_on_one_value_is_not_written_over_another(world: World, here: str) -> None:
    async def story() -> None:
        async with opened(world) as store:
            key = f"{here}plan"
            made = await store.transact(Txn((Compare(key, mod_revision=0),), (Put(key, "1"),)))
            assert made.succeeded
            guarded = Txn((Compare(key, mod_revision=made.revision),), (Put(key, "2"),))
            changed = await store.transact(guarded)
            assert changed.succeeded
            for compare in (
                Compare(key, mod_revision=made.revision),
                Compare(key, mod_revision=0),
                Compare(key, made.revision, made.revision),
                Compare(key, changed.revision, changed.revision),
                Compare(key, 0, changed.revision),
            ):
                assert not (await store.transact(Txn((compare,), (Put(key, "3"),)))).succeeded
            both = Txn((Compare(key, made.revision, changed.revision),), (Put(key, "4"),))
            assert (await store.transact(both)).succeeded
            assert values(await store.get_prefix(here)) == {key: "4"}

    tell(story)


def test_a_lease_that_ends_deletes_its_keys_and_tells_watchers(world: World, here: str) -> None:
    async def story() -> None:
        async with opened(world) as store, opened(world) as watcher:
            lease = await store.grant(1)
            first = await store.transact(
                Txn((), (Put(f"{here}a", "1", lease), Put(f"{here}b", "2", lease)))
            )
            await store.transact(put(f"{here}c", "stays"))
            await world.elapse(1.0)
            last = first.revision + 2
            batches = await read_until(watcher, here, first.revision, last)
            gone = [event for batch in batches for event in batch if event.value is None]
            assert [event.key for event in gone] == [f"{here}a", f"{here}b"]
            assert len({event.mod_revision for event in gone}) == 1
            assert all(event.create_revision == 0 for event in gone)
            assert values(await store.get_prefix(here)) == {f"{here}c": "stays"}
            with pytest.raises(LeaseLostError):
                await store.keep_alive(lease)
            await store.revoke(lease)

    tell(story)


def test_a_lease_that_is_kept_alive_does_not_end(world: World, here: str) -> None:
    async def story() -> None:
        async with opened(world) as store:
            lease = await store.grant(2)
            await store.transact(put(f"{here}a", "1", lease))
            for _ in range(4):
                await world.elapse(0.7)
                assert await store.keep_alive(lease) == 2
            [pair], _ = await store.get_prefix(here)
            assert pair.lease == lease
            await store.revoke(lease)
            assert values(await store.get_prefix(here)) == {}
            with pytest.raises(LeaseLostError):
                await store.keep_alive(lease)

    tell(story)


def test_a_key_lives_by_the_lease_of_its_last_put(world: World, here: str) -> None:
    async def story() -> None:
        async with opened(world) as store:
            one, other = await store.grant(30), await store.grant(30)
            assert one != other
            keys = [f"{here}{name}" for name in ("freed", "moved", "remade", "stayed")]
            await store.transact(Txn((), tuple(Put(key, "1", one) for key in keys)))
            await store.transact(Txn((), (Put(keys[0], "2"), Put(keys[1], "2", other))))
            await store.transact(Txn((), (Delete(keys[2]),)))
            await store.transact(put(keys[2], "2"))
            await store.revoke(one)
            assert values(await store.get_prefix(here)) == dict.fromkeys(keys[:3], "2")
            await store.revoke(other)
            assert values(await store.get_prefix(here)) == {keys[0]: "2", keys[2]: "2"}

    tell(story)


def test_nothing_of_a_refused_transaction_is_done(world: World, here: str) -> None:
    async def story() -> None:
        async with opened(world) as store:
            a, b = f"{here}a", f"{here}b"
            made = await store.transact(put(a, "1"))
            refused = await store.transact(
                Txn((Compare(a, made.revision), Compare(a, 0)), (Put(a, "2"), Put(b, "2")))
            )
            assert refused == TxnResult(succeeded=False, revision=made.revision)
            lease = await store.grant(30)
            await store.revoke(lease)
            with pytest.raises(LeaseLostError):
                await store.transact(Txn((), (Put(a, "3"), Put(b, "3", lease))))
            # The compares come first: whoever lost the guard as well as the lease learns that.
            guarded = Txn((Compare(b, made.revision),), (Put(b, "3", lease),))
            assert not (await store.transact(guarded)).succeeded
            found, revision = await store.get_prefix(here)
            assert found == [KeyValue(a, "1", made.revision, made.revision, None)]
            assert revision == made.revision
            # A deletion of nothing is no change either.
            nothing = await store.transact(Txn((), (Delete(b),)))
            assert nothing == TxnResult(succeeded=True, revision=made.revision)

    tell(story)


def test_a_watch_has_no_gap_however_often_it_is_begun_anew(world: World, here: str) -> None:
    writers, changes = 3, 40

    async def write(store: Store, writer: int) -> None:
        for i in range(changes):
            pair = (Put(f"{here}{writer}/x", str(i)), Put(f"{here}{writer}/y", str(i)))
            result = await store.transact(
                Txn((), pair if i % 4 else (*pair[:1], Delete(pair[1].key)))
            )
            assert result.succeeded
            await asyncio.sleep(0)

    async def story() -> None:
        async with opened(world) as store, opened(world) as reader:
            _, start = await reader.get_prefix(here)
            tasks = [asyncio.create_task(write(store, writer)) for writer in range(writers)]
            seen: list[StoreEvent] = []
            last_values: dict[str, str] = {}
            revision = start + 1
            while list(last_values.values()).count(str(changes - 1)) < 2 * writers:
                # Two batches, then anew: most begin in the middle of the writing.
                async with (
                    asyncio.timeout(PATIENCE_S),
                    aclosing(reader.watch(here, revision)) as watch,
                ):
                    for _ in range(2):
                        batch = await anext(watch)
                        seen += batch
                        revision = batch[-1].mod_revision + 1
                        for event in batch:
                            last_values[event.key] = event.value or ""
                        if list(last_values.values()).count(str(changes - 1)) == 2 * writers:
                            break
            await asyncio.gather(*tasks)
            revisions = [event.mod_revision for event in seen]
            assert revisions == sorted(revisions)
            assert set(revisions) == set(range(start + 1, start + 1 + writers * changes))
            for writer in range(writers):
                x = [event.value for event in seen if event.key == f"{here}{writer}/x"]
                assert x == [str(i) for i in range(changes)]
                y = [event.value for event in seen if event.key == f"{here}{writer}/y"]
                # The first deletion found nothing, so there is no event of it.
                assert y == [str(i) if i % 4 else None for i in range(1, changes)]

    tell(story)


def test_the_changes_of_a_transaction_come_together(world: World, here: str) -> None:
    async def story() -> None:
        async with opened(world) as store:
            operations = tuple(Put(f"{here}{i:03}", str(i)) for i in range(100))
            result = await store.transact(Txn((), operations))
            await store.transact(put(f"{here}x", ""))
            batches = await read_until(store, here, result.revision, result.revision + 1)
            assert {event.key for event in batches[0][:100]} == {put.key for put in operations}
            assert {event.mod_revision for event in batches[0][:100]} == {result.revision}

    tell(story)


def test_names_sort_as_text_and_values_are_any_text(world: World, here: str) -> None:
    async def story() -> None:
        async with opened(world) as store:
            names = ["", "/", "0", "a", "a/b", "z", "é", "\u4e2d", "\uffff", "\U0001f9ab"]
            text = "Ein Biber \U0001f9ab, \u0000, \n und é"
            last = await store.transact(
                Txn((), tuple(Put(f"{here}k{name}", text) for name in reversed(names)))
            )
            await store.transact(Txn((), (Put(f"{here}j", ""), Put(f"{here}l", ""))))
            found, _ = await store.get_prefix(f"{here}k")
            assert [pair.key for pair in found] == [f"{here}k{name}" for name in names]
            assert {pair.value for pair in found} == {text}
            [pair], _ = await store.get_prefix(f"{here}k\U0001f9ab")
            assert pair.key == f"{here}k\U0001f9ab"
            batches = await read_until(store, f"{here}k\uffff", last.revision, last.revision)
            assert batches == [[StoreEvent(f"{here}k\uffff", text, last.revision, last.revision)]]

    tell(story)


def test_a_watch_of_what_was_compacted_says_so(world: World, here: str) -> None:
    async def story() -> None:
        async with opened(world) as store:
            first = await store.transact(put(f"{here}a", "1"))
            last = await store.transact(put(f"{here}a", "2"))
            world.compact(last.revision)
            with pytest.raises(StoreUnavailableError, match="compact"):
                await read_until(store, here, first.revision, last.revision)
            batches = await read_until(store, here, last.revision, last.revision)
            assert batches == [[StoreEvent(f"{here}a", "2", first.revision, last.revision)]]

    tell(story)


def test_an_outage_loses_nothing_and_ends_no_lease(world: World, here: str) -> None:
    async def story() -> None:
        async with opened(world) as store:
            lease = await store.grant(2)
            made = await store.transact(
                Txn((), (Put(f"{here}a", "1", lease), Put(f"{here}b", "2")))
            )
            watch = store.watch(here, made.revision)
            assert len(await anext(watch)) == 2
            ended = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(0)
            world.stop()
            with pytest.raises(StoreUnavailableError):
                async with asyncio.timeout(PATIENCE_S):
                    await ended
            for call in (
                lambda: store.grant(2),
                lambda: store.keep_alive(lease),
                lambda: store.revoke(lease),
                lambda: store.transact(put(f"{here}c", "lost")),
                lambda: store.get_prefix(here),
                lambda: anext(store.watch(here, made.revision)),
            ):
                with pytest.raises(StoreUnavailableError):
                    async with asyncio.timeout(PATIENCE_S):
                        await call()
            await world.elapse(2.5)
            world.start()
            # The key outlived its time: it lasts until its holder could have renewed it.
            await answered(lambda: store.get_prefix(here))
            found, revision = await store.get_prefix(here)
            assert values((found, 0)) == {f"{here}a": "1", f"{here}b": "2"}
            assert revision == made.revision
            assert await store.keep_alive(lease) == 2
            after = await store.transact(put(f"{here}b", "3"))
            assert after.revision == made.revision + 1
            batches = await read_until(store, here, made.revision, after.revision)
            assert [event.value for batch in batches for event in batch] == ["1", "2", "3"]
            await store.revoke(lease)

    tell(story)


def test_a_closed_store_answers_nothing_and_ends_its_watches(world: World, here: str) -> None:
    async def story() -> None:
        async with opened(world) as other:
            store = world.open()
            lease = await store.grant(30)
            made = await store.transact(put(f"{here}a", "1", lease))
            watch = store.watch(here, made.revision)
            await anext(watch)
            waiting = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(0)
            await store.close()
            with pytest.raises(StoreUnavailableError):
                async with asyncio.timeout(PATIENCE_S):
                    await waiting
            with pytest.raises(StoreUnavailableError):
                await store.get_prefix(here)
            with pytest.raises(StoreUnavailableError):
                await anext(store.watch(here, 1))
            await store.close()
            assert values(await other.get_prefix(here)) == {f"{here}a": "1"}
            await other.revoke(lease)

    tell(story)


def test_a_cancelled_call_leaves_the_store_usable(world: World, here: str) -> None:
    async def story() -> None:
        async with opened(world) as store:
            await store.transact(put(f"{here}a", "1"))
            calls = [asyncio.create_task(store.get_prefix(here)) for _ in range(5)]
            watching = asyncio.create_task(read_until(store, here, 1, 1 << 60))
            await asyncio.sleep(0)
            for task in [*calls, watching]:
                task.cancel()
            await asyncio.gather(*calls, watching, return_exceptions=True)
            assert values(await store.get_prefix(here)) == {f"{here}a": "1"}

    tell(story)


def test_what_no_store_can_do_is_refused(world: World) -> None:
    async def story() -> None:
        async with opened(world) as store:
            with pytest.raises(ValueError, match="prefix"):
                await store.get_prefix("")
            with pytest.raises(ValueError, match="prefix"):
                await anext(store.watch("", 1))
            with pytest.raises(ValueError, match="revision"):
                await anext(store.watch("a", 0))
            for ttl_s in (0.0, -1.0, float("nan")):
                with pytest.raises(ValueError, match="ttl_s"):
                    await store.grant(ttl_s)

    tell(story)


def test_a_prefix_is_deleted_at_one_revision_however_many_keys_it_has(
    world: World, here: str
) -> None:
    async def story() -> None:
        async with opened(world) as store:
            keys = [f"{here}job/{i:03}" for i in range(300)]
            for first in range(0, len(keys), 100):
                puts = tuple(Put(key, "x") for key in keys[first : first + 100])
                await store.transact(Txn((), puts))
            kept = await store.transact(Txn((), (Put(f"{here}jobs", "y"), Put(f"{here}a", "y"))))
            gone = await store.transact(
                Txn((), (DeletePrefix(f"{here}job/"), Put(f"{here}a", "z")))
            )
            assert gone.revision == kept.revision + 1
            assert values(await store.get_prefix(here)) == {f"{here}a": "z", f"{here}jobs": "y"}
            batches = await read_until(store, f"{here}job/", gone.revision, gone.revision)
            told = [(event.key, event.value) for event in batches[0]]
            assert sorted(told) == [(key, None) for key in keys]
            nothing = await store.transact(Txn((), (DeletePrefix(f"{here}job/"),)))
            assert nothing == TxnResult(succeeded=True, revision=gone.revision)

    tell(story)


@pytest.mark.parametrize(
    "operations",
    [
        (DeletePrefix("a/"), Put("a/b", "")),
        (Delete("a/"), DeletePrefix("a/")),
        (DeletePrefix("a/"), DeletePrefix("a/b")),
        (DeletePrefix("a/"), DeletePrefix("a/")),
    ],
)
def test_a_key_is_not_written_and_deleted_with_its_prefix_at_once(
    operations: tuple[Put | Delete | DeletePrefix, ...],
) -> None:
    with pytest.raises(ValueError, match="one operation"):
        Txn((), operations)
    with pytest.raises(ValueError, match="prefix"):
        DeletePrefix("")


# One script on both stores, every answer compared. Keys and leases are few, so that they meet.
_keys = st.sampled_from(["a", "b", "b/c"])
_slots = st.integers(0, 2)
_kinds = st.sampled_from(["none", "absent", "current", "stale"])
_guards = st.tuples(_keys, _kinds, _kinds).filter(lambda guard: guard[1:] != ("none", "none"))
_puts = st.tuples(st.just("put"), _keys, st.text(max_size=2), st.none() | _slots)
_deletes = st.tuples(st.just("delete"), _keys)
_steps = st.one_of(
    st.tuples(
        st.just("transact"),
        st.lists(_guards, max_size=2),
        st.lists(_puts | _deletes, min_size=1, max_size=3, unique_by=lambda item: item[1]),
    ),
    st.tuples(st.just("grant"), _slots),
    st.tuples(st.just("revoke"), _slots),
    st.tuples(st.just("keep_alive"), _slots),
)


def guard(
    key: str,
    created: str,
    changed: str,
    current: dict[str, KeyValue],
    first: dict[str, KeyValue],
) -> Compare:
    nothing = KeyValue(key, "", 0, 0, None)
    pairs = {
        "absent": nothing,
        "current": current.get(key, nothing),
        "stale": first.get(key, nothing),
    }
    return Compare(
        key,
        None if created == "none" else pairs[created].create_revision,
        None if changed == "none" else pairs[changed].mod_revision,
    )


async def play(store: Store, here: str, script: list[tuple]) -> list[object]:
    """Return what every step answers, revisions counted from the start, leases by their slot."""
    _, start = await store.get_prefix(here)
    leases = {slot: await store.grant(60) for slot in range(3)}
    # Of each key the first life and the first change that was seen: stale, mostly.
    first: dict[str, KeyValue] = {}
    answers: list[object] = []
    for step in script:
        try:
            match step:
                case ("grant", slot):
                    await store.revoke(leases[slot])
                    leases[slot] = await store.grant(60)
                case ("revoke", slot):
                    await store.revoke(leases[slot])
                case ("keep_alive", slot):
                    answers.append(await store.keep_alive(leases[slot]))
                case ("transact", guards, operations):
                    found, _ = await store.get_prefix(here)
                    current = {pair.key: pair for pair in found}
                    first = current | first
                    compares = tuple(
                        guard(here + name, created, changed, current, first)
                        for name, created, changed in guards
                    )
                    made = tuple(
                        Put(here + item[1], item[2], None if item[3] is None else leases[item[3]])
                        if item[0] == "put"
                        else Delete(here + item[1])
                        for item in operations
                    )
                    result = await store.transact(Txn(compares, made))
                    answers.append((result.succeeded, result.revision - start))
        except LeaseLostError:
            answers.append("lease lost")
        slots = {lease: slot for slot, lease in leases.items()}
        found, _ = await store.get_prefix(here)
        answers += [
            (p.key, p.value, p.create_revision - start, p.mod_revision - start, slots.get(p.lease))
            for p in found
        ]
    for slot in range(3):
        await store.revoke(leases[slot])
    end = await store.transact(put(f"{here}end", ""))
    batches = await read_until(store, here, start + 1, end.revision)
    answers += [
        (e.key, e.value, max(e.create_revision - start, 0), e.mod_revision - start)
        for batch in batches
        for e in batch
    ]
    return answers


@settings(max_examples=40)
@given(script=st.lists(_steps, max_size=12))
def test_the_model_answers_as_etcd_does(etcd: EmbeddedEtcd, script: list[tuple]) -> None:
    prefix = f"script-{next(_numbers)}/"

    async def story() -> None:
        async with opened(EtcdWorld(etcd)) as real, opened(ModelWorld()) as model:
            assert await play(real, prefix, script) == await play(model, prefix, script)

    tell(story)
