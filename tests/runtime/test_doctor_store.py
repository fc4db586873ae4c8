"""`castor doctor` of a store and the job in it: of each finding, how it is when it is wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from castor_policy.agents.admission import software_key
from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.store_keys import agents_prefix, layout_prefix, spec_key
from castor_policy.store import Put, StoreFullError, Txn
from castor_runtime.agent.admission import software_of
from castor_runtime.agent.memory import RankLayout
from castor_runtime.agent.script_files import read_script
from castor_runtime.doctor import host, store
from castor_runtime.doctor.finding import Finding, Health
from castor_runtime.store_address import StoreAddress
from castor_runtime.stores import EmbeddedEtcd, EtcdStore, open_store
from castor_runtime.transport import JobSecret, PeerServer, Told

pytestmark = pytest.mark.long  # a real etcd in each

SECRET = JobSecret(b"the secret of this job")
RUN = "ab" * 8
SPEC = JobSpec("j", 2, 1, "group", ((0, 1), (1, 0)), "train.py", run=RUN)


def asked(url: str, ask: Callable[[EtcdStore], Coroutine[Any, Any, Finding]]) -> Finding:
    async def whole() -> Finding:
        opened = open_store(url)
        try:
            return await ask(opened)
        finally:
            await opened.close()

    return asyncio.run(whole())


def test_an_etcd_that_stands_still_or_is_not_there(etcd: EmbeddedEtcd) -> None:
    assert asked(etcd.url, store.health).health != Health.BAD
    assert etcd.pid is not None
    os.kill(etcd.pid, signal.SIGSTOP)
    stat = Path(f"/proc/{etcd.pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)
    still = asked(etcd.url, store.health)
    os.kill(etcd.pid, signal.SIGCONT)
    etcd.stop()
    down = asked(etcd.url, store.health)
    for found in (still, down):
        assert found.health == Health.BAD
        assert found.found.startswith("does not answer: etcd at ")
        assert "is it up" in found.advice


def test_an_etcd_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_QUOTA_BACKEND_BYTES", "1000000")
    server = EmbeddedEtcd(tmp_path / "etcd")
    server.start()

    async def fill(opened: EtcdStore) -> None:
        for number in range(100):
            await opened.transact(Txn((), (Put(f"/castor/{number}", "x" * 100_000),)))

    async def look(opened: EtcdStore) -> Finding:
        with pytest.raises(StoreFullError):
            await fill(opened)
        return await store.health(opened)

    try:
        found = asked(server.url, look)
    finally:
        server.stop()
    assert (found.health, found.found.endswith("alarm NOSPACE")) == (Health.BAD, True)
    assert "etcdctl alarm disarm" in found.advice


class Slowly:
    """Stands between a store and who asks it, and holds everything up on its way back."""

    def __init__(self, beyond: str, delay_s: float) -> None:
        self._beyond = beyond
        self._delay_s = delay_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"etcd://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(self._beyond)
            for ends in ((near, far, 0.0), (far, near, self._delay_s)):
                threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket, delay_s: float) -> None:
        try:
            while piece := one.recv(1 << 16):
                time.sleep(delay_s)
                other.sendall(piece)
        except OSError:
            return
        finally:
            for end in (one, other):
                end.close()

    def close(self) -> None:
        self._listener.close()


def test_an_etcd_that_is_slow_or_old_or_lets_us_not_in(
    etcd: EmbeddedEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    between = Slowly(str(etcd.endpoint[1]), 1.2 * store.SLOW_S)
    monkeypatch.setattr(store, "fault_of", lambda _: "")  # that of the etcd which is installed here
    found = asked(between.url, store.health)
    between.close()
    assert (found.health, found.found.endswith(" ms, slow")) == (Health.NOTE, True)
    assert "on a disk of its own" in found.advice
    monkeypatch.setattr(store, "fault_of", lambda version: f"etcd {version} loses data")
    assert asked(etcd.url, store.health).advice.endswith("loses data")

    async def as_somebody() -> Finding:
        opened = EtcdStore(StoreAddress((etcd.endpoint,), user="somebody", password="p"))
        try:
            return await store.health(opened)
        finally:
            await opened.close()

    found = asyncio.run(as_somebody())
    assert (found.health, "asks nobody for a password" in found.found) == (Health.BAD, True)


@asynccontextmanager
async def agent(secret: JobSecret = SECRET, ahead_s: float = 0.0) -> AsyncIterator[str]:
    """An agent's server; its address."""
    told = Told(clock_ns=lambda: time.time_ns() + int(ahead_s * 1e9))
    async with PeerServer(
        "127.0.0.1",
        credentials=secret,
        run=RUN,
        source=None,  # type: ignore[arg-type]  # nobody asks for a part
        status=dict,
        told=told,
    ) as server:
        yield server.address


def test_the_job_in_a_store(etcd: EmbeddedEtcd, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("pass\n")
    own = software_of("node-0", script, read_script(script), "interleaved")

    async def look(**software: Any) -> dict[str, Finding]:
        opened = open_store(etcd.url)
        other = JobSecret(b"the secret of another job")
        try:
            async with agent() as well, agent(ahead_s=3600) as ahead, agent(other) as strange:
                reports = {"well": well, "dead": "127.0.0.1:1", "ahead": ahead, "strange": strange}
                puts = [
                    Put(spec_key("j"), replace(SPEC, script=str(script)).to_json()),
                    Put(software_key("j"), replace(own, **software).to_json()),
                    *(
                        Put(agents_prefix("j") + name, AgentReport(name, "i", False, at).to_json())
                        for name, at in reports.items()
                    ),
                ]
                found = await store.job(opened, "none", script, None)
                await opened.transact(Txn((), tuple(puts)))
                found += await store.job(opened, "j", script, SECRET)
                (gone,) = await store.job(opened, "j", tmp_path / "gone.py", None)
                assert (gone.health, "No such file" in gone.found) == (Health.BAD, True)
                return {one.what: one for one in found}
        finally:
            await opened.close()

    found = asyncio.run(look())
    assert found["job"].found == "there is no job none yet: the first host makes it"
    for what in ("versions", "script", "agent well"):
        assert found[what].health == Health.GOOD
    assert (found["agent dead"].health, found["agent strange"].health) == (Health.BAD, Health.BAD)
    assert "secret" in found["agent strange"].found
    assert found["agent ahead"].health == Health.NOTE
    assert found["agent ahead"].found.endswith("its clock is +3600.0 s apart")
    assert "chrony" in found["agent ahead"].advice
    found = asyncio.run(look(versions={"torch": "1.0"}, files={"train.py": "00" * 32}))
    assert "torch" in found["versions"].found
    assert found["versions"].health == found["script"].health == Health.BAD


def test_shared_memory_against_the_plan_of_the_job_in_the_store(
    etcd: EmbeddedEtcd, tmp_path: Path
) -> None:
    async def look() -> list[store.Planned | None]:
        opened = open_store(etcd.url)
        found = []
        try:
            await opened.transact(Txn((), (Put(spec_key("j"), SPEC.to_json()),)))
            for rank, size_bytes in enumerate((1 << 50, 1 << 51)):
                found.append(await store.planned(opened, "j"))
                layout = RankLayout(rank, size_bytes, 0, 1 << 40, "0f" * 16)
                put = Put(f"{layout_prefix('j')}{rank}", layout.to_json())
                await opened.transact(Txn((), (put,)))
            return [*found, await store.planned(opened, "j")]
        finally:
            await opened.close()

    *before, planned = asyncio.run(look())
    assert before == [None, None]  # its trainers have not all said how large they are
    assert planned is not None
    assert planned.memory_bytes == pytest.approx(2 * 3 * (1 << 50), rel=1e-6)
    sizes = (planned.state_bytes, planned.machines, planned.replicas, planned.held_bytes)
    assert sizes == (1 << 51, 2, 2, 0)
    found = host.shared_memory(planned.memory_bytes, tmp_path)
    assert (found.health, "checkpoints take 6291456.0 GiB" in found.found) == (Health.BAD, True)
