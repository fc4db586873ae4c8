"""`castor doctor --meet`: whether hosts reach each other's ports, both ways, and how fast."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from castor.app import app
from castor_configs.errors import InputError
from castor_lab.emulated_cluster.iproute import KernelRefusedError, ip
from castor_policy.agents.store_keys import doctors_prefix
from castor_policy.store import Put, Txn
from castor_runtime.doctor import meeting, open_ports
from castor_runtime.doctor.finding import Finding, Health
from castor_runtime.doctor.link_rate import IterationTraffic
from castor_runtime.doctor.meeting import Card, Expected, meet
from castor_runtime.doctor.open_ports import AGENTS, COLLECTIVES, RENDEZVOUS, OpenPorts, unreached
from castor_runtime.ports import Ports
from castor_runtime.stores import EmbeddedEtcd
from castor_runtime.transport import JobSecret
from castor_sim.model_store import ModelStore
from castor_sim.store_model import StoreModel

SECRET = JobSecret(b"the secret of this job")
HOSTS = {"a": "127.0.0.1", "b": "127.0.0.2", "c": "127.0.0.3"}


class Hosts:
    """Doctors of several addresses, over one store."""

    def __init__(self) -> None:
        self.store = ModelStore(StoreModel(), lambda: 0.0)

    async def meet(
        self, *names: str, secrets: dict[str, JobSecret] | None = None, **changed: object
    ) -> list[list[Finding]]:
        async def one(name: str) -> list[Finding]:
            given = {"patience_s": 30.0, **changed}
            expected = Expected("j", name, len(names), **given)  # type: ignore[arg-type]
            secret = (secrets or {}).get(name, SECRET)
            return await meet(self.store, expected, HOSTS[name], secret)

        found = await asyncio.wait_for(asyncio.gather(*map(one, names)), 120)
        assert (await self.store.get_prefix(doctors_prefix("j")))[0] == []
        return found


def told(findings: list[Finding]) -> dict[str, tuple[Health, str]]:
    return {one.what: (one.health, one.found) for one in findings}


def test_hosts_that_reach_each_other_say_so_and_how_fast() -> None:
    traffic = IterationTraffic.of(12 * 10**9, machines=4, replicas=2)
    assert (traffic.training_bytes, traffic.copies_bytes) == (18e9, 12e9)
    found = asyncio.run(Hosts().meet("a", "b", "c", traffic=traffic))
    measured = set()
    for name, findings in zip("abc", found, strict=True):
        *ports, rate = findings
        assert {one.health for one in ports} == {Health.GOOD}
        assert {one.what for one in ports} == {f"ports of {one}" for one in "abc" if one != name}
        assert rate.what != f"link from {name}"
        assert "an iteration moves 30 GB in (18 by training, 12 of copies): " in rate.found
        measured.add(rate.what)
    assert measured == {"link from a", "link from b", "link from c"}  # each by one


def test_a_host_that_does_not_come_is_missed() -> None:
    expected = Expected("j", "a", 2, 0.1)
    store = Hosts().store
    (finding,) = asyncio.run(meet(store, expected, "127.0.0.1", SECRET))
    assert (finding.what, finding.health) == ("hosts", Health.BAD)
    assert finding.found == "1 of 2 came within 0.1 s: a"


def test_two_hosts_of_one_name_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "LEASE_S", 0.1)
    monkeypatch.setattr(meeting, "_RENEW_S", 0.1)
    store = Hosts().store
    another = Put(f"{doctors_prefix('j')}a", Card("a", {}, "token").to_json())

    async def second() -> list[Finding]:
        await store.transact(Txn((), (another,)))
        return await meet(store, Expected("j", "a", 2, 30.0), "127.0.0.1", SECRET)

    (finding,) = asyncio.run(second())
    assert (finding.health, finding.found) == (Health.BAD, "another doctor is 'a' already")
    assert "--name" in finding.advice


def test_a_secret_of_another_job_is_told_on_both_hosts() -> None:
    found = asyncio.run(Hosts().meet("a", "b", secrets={"b": JobSecret(b"of another job, long")}))
    for other, findings in zip("ba", found, strict=True):
        said = told(findings)
        assert {said[f"to {other}"][0], said[f"from {other}"][0]} == {Health.BAD}
        assert "secret" in said[f"from {other}"][1]


def test_a_port_that_does_not_answer_or_answers_for_somebody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(open_ports, "ANSWER_S", 0.2)

    async def ask() -> dict[str, str]:
        with socket.socket() as closed, socket.socket() as full:
            closed.bind(("127.0.0.1", 0))
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            waiting = [socket.socket() for _ in range(2)]
            for one in waiting:  # as many as it lets wait: the kernel drops the next
                one.setblocking(False)
                one.connect_ex(full.getsockname())
            async with OpenPorts("127.0.0.1", Ports(), SECRET, "j") as listening:
                assert await unreached(listening.places, listening.token) == {}
                others = await unreached(listening.places, "another's")
                assert set(others.values()) == {"somebody else answers there"}
                assert set(others) == {RENDEZVOUS, COLLECTIVES}
            places = {
                AGENTS: "not asked",
                RENDEZVOUS: f"127.0.0.1:{full.getsockname()[1]}",
                COLLECTIVES: f"127.0.0.1:{closed.getsockname()[1]}",
            }
            found = await unreached(places, "a token")
            for one in waiting:
                one.close()
            return found

    found = asyncio.run(ask())
    assert found[COLLECTIVES] == "Connection refused"
    assert "as where a firewall drops what comes" in found[RENDEZVOUS]


@pytest.fixture
def two_hosts(needs: Callable[..., None]) -> Iterator[tuple[str, str]]:
    """Two networks, a cable between them: 10.9.0.1 and 10.9.0.2."""
    needs("ip", "tc", root=True)
    names = ("castor-doctor-a", "castor-doctor-b")
    try:
        for name in names:
            ip("netns", "add", name)
        peer = ("type", "veth", "peer", "name", "eth0", "netns", names[1])
        ip("link", "add", "eth0", "netns", names[0], *peer)
        for number, name in enumerate(names, start=1):
            ip("address", "add", f"10.9.0.{number}/24", "dev", "eth0", namespace=name)
            ip("link", "set", "eth0", "up", namespace=name)
        yield names
    finally:
        for name in names:
            try:
                ip("netns", "delete", name)
            except KernelRefusedError:
                continue  # it was never made


@pytest.mark.long
def test_a_firewall_and_a_slow_cable_between_two_hosts(
    two_hosts: tuple[str, str], tmp_path: Path
) -> None:
    """The second host's answers from one port are dropped, and all it sends is slow."""
    _, second = two_hosts
    drop = "rule add from 10.9.0.2 ipproto tcp sport 7001 blackhole"
    ip(*drop.split(), namespace=second)
    slow = "tc qdisc add dev eth0 root tbf rate 20mbit burst 64kb latency 100ms"
    subprocess.run(["ip", "netns", "exec", second, *slow.split()], check=True, timeout=30)
    secret = tmp_path / "secret"
    secret.write_bytes(b"the secret of this job")
    secret.chmod(0o600)
    etcd = EmbeddedEtcd(tmp_path / "etcd")
    etcd.start()
    try:
        line = ["--interface", "eth0", "--ports", "7000-7019", "--secret", str(secret), "--job"]
        line += ["j", "--store", etcd.url, "--meet", "2", "--state-bytes", "12MB", "--json"]
        castor = str(Path(sys.executable).with_name("castor"))
        asked = [
            subprocess.Popen(
                ["ip", "netns", "exec", host, castor, "doctor", *line, "--name", host[-1]],
                stdout=subprocess.PIPE,
                text=True,
            )
            for host in two_hosts
        ]
        said = [one.communicate(timeout=120)[0] for one in asked]
    finally:
        etcd.stop()
    assert [one.returncode for one in asked] == [1, 1]
    first, other = (
        {found["what"]: found for found in map(json.loads, text.splitlines())} for text in said
    )
    assert first["to b"]["found"].startswith("10.9.0.2:7001 (the trainers' rendezvous) is not ")
    assert first["to b"]["advice"] == "open 7000-7019 among the job's hosts"
    assert other["from a"]["found"].startswith("does not reach 10.9.0.2:7001 of this host (the tr")
    assert "to a" not in other
    assert first["link from b"]["health"] == "note"
    assert "all hosts wait for the slowest" in first["link from b"]["advice"]
    assert other["link from a"]["health"] == "good"
    assert first["shared memory"]["found"].endswith("checkpoints take 0.0 GiB")


def test_what_hosts_need_to_meet_is_asked_for(tmp_path: Path) -> None:
    for given in ([], ["--job", "j"], ["--job", "j", "--store", "etcd://127.0.0.1:1"]):
        with pytest.raises(InputError, match="hosts meet by --store, --job and --secret"):
            CliRunner().invoke(app, ["doctor", "--meet", "2", *given], catch_exceptions=False)
