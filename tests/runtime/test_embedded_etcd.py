"""The etcd for one machine: dies when it should, keeps its data, and hangs nobody."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from castor_lab.faults.machines import suspend
from castor_policy.store import Keys, LeaseLostError, Put, StoreUnavailableError, Txn
from castor_runtime.store_address import StoreAddress
from castor_runtime.stores import EmbeddedEtcd, EtcdStartError, EtcdStore, open_store

pytestmark = pytest.mark.long  # all of it starts real processes, many times

PATIENCE_S = 60.0


def tell(story: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(story(), 2 * PATIENCE_S)

    asyncio.run(bounded())


def put(key: str, value: str) -> Txn:
    return Txn((), (Put(key, value),))


def gone(pid: int) -> bool:
    """Whether the process has ended; a zombie that nobody has waited for has."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in {"Z", "X"}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_what_was_answered_survives_kill_9(etcd: EmbeddedEtcd) -> None:
    """Writers write until the kill; then every write that was answered must be there."""

    async def write(store: EtcdStore, name: str, last: dict[str, int]) -> None:
        while True:
            value = last[name] + 1
            try:
                await store.transact(put(f"job/{name}", str(value)))
            except StoreUnavailableError:
                return
            last[name] = value

    async def story() -> None:
        store = open_store(etcd.url)
        last = {f"writer-{i}": -1 for i in range(8)}
        port = etcd.endpoint[1]
        for _ in range(3):
            tasks = [asyncio.create_task(write(store, name, last)) for name in last]
            await asyncio.sleep(0.2)
            etcd.kill()
            assert etcd.pid is None
            await asyncio.gather(*tasks)
            etcd.restart()
            assert etcd.endpoint[1] == port
            while True:
                try:
                    found, _ = await store.get_prefix("job/")
                    break
                except StoreUnavailableError:
                    await asyncio.sleep(0.01)
            assert len(found) == len(last)
            for pair in found:
                name = pair.key.removeprefix("job/")
                # One more may have been written and not been answered.
                assert int(pair.value) - last[name] in {0, 1}
                last[name] = int(pair.value)
        assert min(last.values()) > 0
        await store.close()

    tell(story)


def test_an_etcd_that_hangs_hangs_nobody(etcd: EmbeddedEtcd) -> None:
    async def story() -> None:
        store = open_store(etcd.url, timeout_s=0.3)
        lease = await store.grant(10)
        made = await store.transact(put("job/a", "1"))
        watch = store.watch("job/", made.revision)
        await anext(watch)
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        pid = etcd.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            # A new watch gets no answer to its beginning, and says so.
            with pytest.raises(StoreUnavailableError, match="in time"):
                await anext(store.watch("job/", made.revision))
            # The old one learns of it from that, though its own connection stands.
            with pytest.raises(StoreUnavailableError):
                async with asyncio.timeout(PATIENCE_S):
                    await waiting
            calls = (
                store.keep_alive(lease),
                store.get_prefix("job/"),
                store.transact(put("b", "")),
            )
            for answer in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(answer, StoreUnavailableError)
        finally:
            os.kill(pid, signal.SIGCONT)
        while True:
            try:
                await store.keep_alive(lease)
                break
            except StoreUnavailableError:
                await asyncio.sleep(0.01)
        async with aclosing(store.watch("job/", made.revision)) as again:
            assert [event.value for event in await anext(again)] == ["1"]
        await store.close()

    tell(story)


def test_the_next_member_is_asked_when_one_is_away(etcd: EmbeddedEtcd) -> None:
    async def story() -> None:
        host, port = etcd.endpoint
        away = (host, unused_port())
        store = EtcdStore(StoreAddress((away, (host, port))))
        # What may be repeated is; a transaction may not, but the one after it goes elsewhere.
        lease = await store.grant(10)
        assert await store.keep_alive(lease) == 10
        made = await store.transact(put("job/a", "1"))
        await store.close()

        store = EtcdStore(StoreAddress((away, away, (host, port))))
        with pytest.raises(StoreUnavailableError):
            await store.transact(put("job/a", "2"))
        with pytest.raises(StoreUnavailableError):
            await anext(store.watch("job/", made.revision))
        async with aclosing(store.watch("job/", made.revision)) as watch:
            assert [event.value for event in await anext(watch)] == ["1"]
        await store.revoke(lease)
        with pytest.raises(LeaseLostError):
            await store.keep_alive(lease)
        await store.close()

    tell(story)


def test_failures_that_come_together_count_as_one(etcd: EmbeddedEtcd) -> None:
    async def story() -> None:
        host, port = etcd.endpoint
        store = EtcdStore(StoreAddress(((host, unused_port()), (host, port))))
        calls = [store.transact(put("job/a", str(i))) for i in range(4)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(answer, StoreUnavailableError) for answer in answers)
        # Had each of them moved on by one, this would meet the dead member again.
        await store.transact(put("job/a", "5"))
        await store.close()

    tell(story)


def test_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = (
        "import sys, time, pathlib\n"
        "from castor_runtime.stores import EmbeddedEtcd\n"
        "server = EmbeddedEtcd(pathlib.Path(sys.argv[1])); server.start()\n"
        "print(server.pid, flush=True); time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent.stdout as output:
        pid = int(output.readline())
        assert not gone(pid)
        parent.kill()
        parent.wait()
    wait_until(lambda: gone(pid))


def test_reads_that_are_given_up_end_no_etcd(etcd: EmbeddedEtcd) -> None:
    """etcd 3.5.1 ends by a transaction of reads whose client does not wait for it."""
    keys = Keys(frozenset({"job/one", "job/two"}), ("job/a/", "job/b/"))

    async def story() -> None:
        store = open_store(etcd.url)
        for number in range(200):
            await store.transact(put(f"job/a/{number}", "x" * 10_000))
        for turn in range(300):
            reads = [asyncio.create_task(store.read(keys)) for _ in range(4)]
            await asyncio.sleep(turn % 20 / 1000)
            for one in reads:
                one.cancel()
            await asyncio.gather(*reads, return_exceptions=True)
        found, _ = await store.read(keys)
        assert len(found) == 200
        await store.close()

    tell(story)


def test_start_and_stop_may_be_repeated(etcd: EmbeddedEtcd) -> None:
    pid = etcd.pid
    etcd.start()
    assert etcd.pid == pid
    suspend(pid or 0)
    etcd.stop()
    assert etcd.pid is None
    assert gone(pid or 0)
    etcd.stop()
    etcd.kill()
    etcd.restart()
    assert etcd.pid not in {None, pid}


def test_a_start_that_fails_shows_the_log(etcd: EmbeddedEtcd, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EtcdStartError, match="address already in use"):
            EmbeddedEtcd(tmp_path / "second", port=port, host="127.0.0.1").start()
    broken = tmp_path / "broken"
    (broken / "data").mkdir(parents=True, mode=0o700)
    (broken / "data" / "member").write_text("no folder")
    with pytest.raises(EtcdStartError, match=r"etcd exited .*\n.*member"):
        EmbeddedEtcd(broken).start()


def test_two_jobs_at_once_get_ports_of_their_own(etcd: EmbeddedEtcd, tmp_path: Path) -> None:
    made = [EmbeddedEtcd(tmp_path / name, host="127.0.0.1") for name in ("one", "other")]
    try:
        for server in made:
            server.start()
        assert len({etcd.endpoint, *(server.endpoint for server in made)}) == 3
        ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        for server in made:
            assert not int(ephemeral[0]) <= int(server.endpoint[1]) <= int(ephemeral[1])
    finally:
        for server in made:
            server.kill()


def test_it_listens_at_no_port_at_all(etcd: EmbeddedEtcd) -> None:
    inodes = set()
    for descriptor in Path(f"/proc/{etcd.pid}/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:  # closed meanwhile
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and columns[9] in inodes:
                listening.add(columns[1].split(":")[0])
    assert inodes, "at its sockets"
    assert listening == set()


def test_protobuf_keeps_its_place_in_the_environment() -> None:
    program = (
        "import os; import castor_runtime.stores\n"
        "assert 'PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION' not in os.environ\n"
    )
    environment = dict(os.environ)
    environment.pop("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", None)
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, env=environment)
    late = "import google.protobuf.descriptor_pb2; import castor_runtime.stores"
    run = subprocess.run(
        [sys.executable, "-c", late], capture_output=True, text=True, env=environment, check=False
    )
    assert "import castor_runtime.stores first" in run.stderr


@pytest.mark.parametrize(
    "url",
    [
        "",
        "etcd://a:1?certificates=/x",
        "etcd+unix://x",
        "etcd://",
        "etcd://host",
        "etcd://:1",
        "http://host:1",
        "host:1",
        "etcd://a:1,",
        "etcd://a:b",
    ],
)
def test_what_is_no_store_is_refused_with_the_form_to_write(url: str) -> None:
    with pytest.raises(ValueError, match="write a store as etcd://"):
        open_store(url)


def test_a_store_needs_members_and_time() -> None:
    with pytest.raises(ValueError, match="endpoint"):
        EtcdStore(StoreAddress(()))
    with pytest.raises(ValueError, match="timeout_s"):
        EtcdStore(StoreAddress((("a", 1),)), timeout_s=0.0)
