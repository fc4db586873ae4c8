"""`castor doctor`: of each thing that it looks at, how it is when it is wrong."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from castor.app import app
from castor_runtime.authority import Authority
from castor_runtime.doctor import credentials, host
from castor_runtime.doctor.finding import Health
from castor_runtime.ports import kernel_range

SECRET = b"the secret of this job"


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


def test_memory_that_does_not_suffice(tmp_path: Path) -> None:
    assert host.shared_memory(1 << 60, tmp_path).health == Health.BAD
    assert host.shared_memory(1 << 60, tmp_path, held_bytes=1 << 60).health == Health.GOOD
    assert host.shared_memory(None, tmp_path).health == Health.NOTE
    little = host.shared_memory(1 << 30, tmp_path, memory_bytes=1 << 29)  # a container's limit
    assert (little.health, "0.5 GiB of memory left" in little.found) == (Health.BAD, True)
    assert "counts as memory" in little.advice


def test_shared_memory_of_a_containers_default(tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("mount", "umount", root=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64M", "castor-test", str(tmp_path)]
    subprocess.run(mount, check=True, timeout=30)
    try:
        found = host.shared_memory(1, tmp_path)
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True, timeout=30)
    assert (found.health, "a container's default" in found.found) == (Health.BAD, True)
    assert "--shm-size" in found.advice


@pytest.mark.parametrize(
    ("mounted", "kernel", "health", "found"),
    [
        ("rw,huge=advise", "always [never]", Health.GOOD, "may use them (huge=advise)"),
        ("rw", "always [never] force", Health.NOTE, "none in /shm: 2,048 pages of 4 KiB"),
        ("rw", "never [force]", Health.GOOD, "may use them"),
        ("rw,huge=always", "never [deny]", Health.NOTE, "none in /shm"),
        ("rw,huge=always", None, Health.NOTE, "this kernel has none"),
    ],
)
def test_huge_pages_are_as_the_file_system_is_mounted(
    tmp_path: Path, mounted: str, kernel: str | None, health: Health, found: str
) -> None:
    mounts, said = tmp_path / "mounts", tmp_path / "shmem_enabled"
    mounts.write_text(f"tmpfs /shm tmpfs ro 0 0\ntmpfs /shm tmpfs {mounted} 0 0\n")
    if kernel is not None:
        said.write_text(kernel)
    looked = host.huge_pages(8 << 20, Path("/shm"), mounts, said)
    assert (looked.health, found in looked.found) == (health, True), looked
    assert ("remount,huge=advise" in looked.advice) == ("none in" in found)


def test_a_limit_of_locked_memory() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, hard))
        limited = host.locked_memory()
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
    assert (limited.health, limited.found) == (Health.NOTE, "limited to 1 MiB")
    assert "ulimit -l" in limited.advice


def test_a_clock_that_nobody_sets() -> None:
    """To unset this computer's for real would be a fault of everybody's."""
    time_error = 5  # adjtimex(2)
    found = host.clock(lambda: time_error)
    assert (found.health, "chrony" in found.advice) == (Health.NOTE, True)
    assert host.clock(lambda: 0).health == Health.GOOD
    assert host.clock().what == "clock"


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


def test_what_the_command_says(tmp_path: Path) -> None:
    def doctor(*options: str) -> tuple[int, dict[str, dict[str, str]]]:
        done = CliRunner().invoke(app, ["doctor", "--json", *options], catch_exceptions=False)
        lines = [json.loads(line) for line in done.output.splitlines()]
        return done.exit_code, {one["what"]: one for one in lines}

    code, found = doctor("--store", "etcd://no-such-host.invalid:1")
    assert (code, found["name of the store"]["health"]) == (1, "bad")
    assert {"address", "ports", "credentials", "shared memory", "clock", "GPUs", "NUMA"} <= set(
        found
    )
    code, found = doctor("--store", "etcd://127.0.0.1:1?unknown=1")
    assert (code, found["store's address"]["health"]) == (1, "bad")
    plain = CliRunner().invoke(app, ["doctor"])
    assert "give --interface eth0" in plain.output
