"""`castor doctor`: of each thing that it looks at, how it is when it is wrong."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from castor.app import app
from castor_policy.agents.admission import software_key
from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.store_keys import agents_prefix, spec_key
from castor_policy.store import Put, Txn
from castor_runtime.agent.admission import software_of
from castor_runtime.agent.script_files import read_script
from castor_runtime.authority import Authority
from castor_runtime.doctor import credentials, host, store
from castor_runtime.doctor.finding import Health
from castor_runtime.ports import kernel_range
from castor_runtime.stores import EmbeddedEtcd, open_store
from castor_runtime.transport import JobSecret, PeerServer

SECRET = b"the secret of this job"
RUN = "ab" * 8


def test_an_address_that_others_cannot_reach() -> None:
    for listen, interface, why in [
        ("127.0.0.1", "", "is this host's own"),
        ("", "eth99", "there is no interface 'eth99'"),
        ("192.0.2.1", "", "is on no interface"),
        ("no-such-host.invalid", "", ""),
    ]:
        finding, _ = host.address(listen, interface)
        assert finding.health == Health.BAD
        assert why in finding.found
        assert finding.advice


def test_ports_that_are_taken_or_somebody_elses() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with socket.socket() as next_to_it:
            next_to_it.bind(("127.0.0.1", port + 1))
            next_to_it.listen()
            finding = host.ports(f"{port}-{port + 1}", "127.0.0.1")
    assert (finding.health, "are taken" in finding.found) == (Health.BAD, True)
    assert host.ports("7000", "").health == Health.BAD
    kernel = kernel_range()
    assert host.ports(f"{kernel.first}-{kernel.last}", "").health == Health.NOTE
    assert host.ports(f"{kernel.last + 1}-{kernel.last + 9}", "").health == Health.GOOD


def test_memory_that_does_not_suffice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host.shared_memory(1 << 60, tmp_path).health == Health.BAD
    assert host.shared_memory(1, tmp_path).health == Health.GOOD
    limits = {True: resource.RLIM_INFINITY, False: 8 << 20}
    for unlimited, limit in limits.items():
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert host.locked_memory().health == (Health.GOOD if unlimited else Health.NOTE)


def test_gpus_that_are_missing_or_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert host.gpus(2).health == Health.NOTE
    program = tmp_path / "nvidia-smi"
    for script, health in [
        ("echo 'GPU 0: NVIDIA H200 (UUID: GPU-1)'", Health.BAD),
        ("echo 'GPU 0: NVIDIA'; echo 'GPU 1: NVIDIA'", Health.GOOD),
        ("echo 'Driver/library version mismatch'; exit 18", Health.BAD),
    ]:
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        assert host.gpus(2).health == health


def test_credentials_that_others_read_or_that_end(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    secret.chmod(0o644)
    none = (None, None, None)
    finding, _ = credentials.credentials(secret, none, "")
    assert (finding.health, finding.advice) == (Health.BAD, f"chmod 600 {secret}")
    secret.write_bytes(b"short")
    assert credentials.credentials(secret, none, "")[0].health == Health.BAD
    assert credentials.credentials(None, none, "")[0].health == Health.NOTE
    authority = Authority.new("lab")
    ca, certificate, key = (tmp_path / name for name in ("ca.pem", "node.pem", "node.key"))
    authority.own().write(ca, tmp_path / "ca.key")
    authority.issue("127.0.0.1").write(certificate, key)
    for later, listen, health in [
        (timedelta(0), "127.0.0.1", Health.GOOD),
        (timedelta(days=36500), "127.0.0.1", Health.NOTE),
        (timedelta(0), "10.9.8.7", Health.BAD),
    ]:
        now = datetime.now(UTC) + later
        assert (
            credentials.credentials(None, (ca, certificate, key), listen, now)[0].health == health
        )


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EmbeddedEtcd]:
    server = EmbeddedEtcd(tmp_path / "etcd")
    server.start()
    yield server
    server.stop()


@pytest.mark.long
def test_a_store_and_the_job_in_it(etcd: EmbeddedEtcd, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("pass\n")
    own = software_of("node-0", script, read_script(script))
    spec = JobSpec("j", 2, 1, "group", ((0, 1), (1, 0)), str(script), run=RUN)
    other = tmp_path / "other.py"
    other.write_text("pass  # but not the same\n")

    async def look(**software: Any) -> dict[str, store.Finding]:
        server = PeerServer(
            "127.0.0.1",
            credentials=JobSecret(SECRET),
            run=RUN,
            source=None,
            status=dict,  # type: ignore[arg-type]  # nobody asks for a part
        )
        opened = open_store(etcd.url)
        try:
            async with server:
                reports = {"node-0": server.address, "node-1": "127.0.0.1:1"}
                puts = [
                    Put(spec_key("j"), spec.to_json()),
                    Put(software_key("j"), replace(own, **software).to_json()),
                    *(
                        Put(agents_prefix("j") + name, AgentReport(name, "i", False, at).to_json())
                        for name, at in reports.items()
                    ),
                ]
                found = [await store.health(opened)]
                found += await store.job(opened, "none", script, None)
                await opened.transact(Txn((), tuple(puts)))
                found += await store.job(opened, "j", script, JobSecret(SECRET))
                return {one.what: one for one in found}
        finally:
            await opened.close()

    found = asyncio.run(look())
    assert found["store"].found.startswith("etcd ")
    assert found["job"].found == "there is no job none yet: the first host makes it"
    for what in ("versions", "script", "agent node-0"):
        assert found[what].health == Health.GOOD
    assert found["agent node-1"].health == Health.BAD
    found = asyncio.run(look(versions={"torch": "1.0"}, files={"train.py": "00" * 32}))
    assert "torch" in found["versions"].found
    assert found["versions"].health == found["script"].health == Health.BAD


def test_what_the_command_says(tmp_path: Path) -> None:
    def doctor(*options: str) -> tuple[int, dict[str, dict[str, str]]]:
        done = CliRunner().invoke(app, ["doctor", "--json", *options], catch_exceptions=False)
        lines = [json.loads(line) for line in done.output.splitlines()]
        return done.exit_code, {one["what"]: one for one in lines}

    code, found = doctor("--store", "etcd://no-such-host.invalid:1")
    assert (code, found["name of the store"]["health"]) == (1, "bad")
    assert {"address", "ports", "credentials", "shared memory", "clock", "GPUs"} <= set(found)
    code, found = doctor("--store", "etcd://127.0.0.1:1?unknown=1")
    assert (code, found["store's address"]["health"]) == (1, "bad")
    plain = CliRunner().invoke(app, ["doctor"])
    assert "give --interface eth0" in plain.output
