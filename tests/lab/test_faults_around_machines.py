"""What happens to a run from around its machines is carried out, and repaired."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from castor_lab.faults.fault import Fault, parse_fault
from castor_lab.faults.machines import TargetMissingError
from castor_lab.faults.surroundings import Surroundings
from castor_runtime.agent.options import AgentOptions

PATIENCE_S = 60.0


def fault(text: str) -> Fault:
    return parse_fault(text, machines=2, ranks_per_machine=1)


@dataclass
class Run:
    """The rest of a run, as far as its surroundings need it."""

    folder: Path
    persist: Path | None = None
    etcd: list[str] = field(default_factory=list)
    came: list[tuple[AgentOptions, str]] = field(default_factory=list)

    async def kill(self) -> None:
        self.etcd.append("kill")

    async def wipe(self) -> None:
        self.etcd.append("wipe")

    async def restart(self) -> None:
        self.etcd.append("restart")

    async def intrude(self, options: AgentOptions, label: str) -> int:
        self.came.append((options, label))
        return 2

    def options(self, name: str, standby: bool) -> AgentOptions:
        return AgentOptions(
            name, "j", "etcd://h:1", self.folder / name, standby, secret=self.folder / "secret"
        )

    def surroundings(self, *, own_store: bool = True) -> Surroundings:
        etcd = self if own_store else None
        return Surroundings(self.folder, self.persist, etcd, self.options, self.intrude)  # type: ignore[arg-type]


def carry_out(around: Surroundings, text: str) -> str:
    async def work() -> str:
        await around.strike(fault(text))
        return await around.mend(fault(text), {0: "node-0", 1: "spare-0"})

    return asyncio.run(work())


def test_a_store_comes_back_with_its_data_or_without(tmp_path: Path) -> None:
    run = Run(tmp_path)
    around = run.surroundings()
    assert carry_out(around, "store@1/0s") == "the store runs again"
    assert run.etcd == ["kill", "restart"]
    run.etcd.clear()
    assert carry_out(around, "wipe@1/0s") == "the store runs again, empty"
    assert run.etcd == ["kill", "wipe", "restart"]
    for text in ("store@1", "wipe@1"):
        with pytest.raises(TargetMissingError):
            asyncio.run(run.surroundings(own_store=False).strike(fault(text)))


def test_a_twin_has_the_name_of_who_fills_the_machine_and_a_stranger_another_secret(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path)
    (tmp_path / "secret").write_text("the job's")
    around = run.surroundings()
    assert carry_out(around, "twin:1@1") == "twin-of-spare-0 ended with exit code 2"
    assert carry_out(around, "stranger@1") == "stranger-1 ended with exit code 2"
    (twin, _), (stranger, _) = run.came
    assert (twin.name, twin.secret) == ("spare-0", tmp_path / "secret")
    assert (stranger.name, stranger.standby) == ("stranger-1", True)
    assert stranger.secret is not None
    assert len(stranger.secret.read_text().strip()) == 64
    assert (twin.folder, stranger.folder) == (tmp_path / "twin-of-spare-0", tmp_path / "stranger-1")
    assert around.strangers == {"twin-of-spare-0": 2, "stranger-1": 2}


def read_in_thread(path: Path) -> tuple[threading.Thread, Callable[[], bytes]]:
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(path.read_bytes()), daemon=True)
    thread.start()
    return thread, lambda: found[0]


def test_who_reads_storage_that_hangs_waits_and_is_let_go_in_the_end(tmp_path: Path) -> None:
    run = Run(tmp_path, tmp_path / "kept")
    around = run.surroundings()
    asyncio.run(around.strike(fault("storagehang@1")))
    (manifest,) = (tmp_path / "kept").glob("*/*")
    thread, found = read_in_thread(manifest)
    thread.join(0.2)
    assert thread.is_alive()
    around.close()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert found() == b""
    assert list((tmp_path / "kept").iterdir()) == []
    around.close()  # nothing is left to mend


def test_a_large_file_system_is_never_filled(tmp_path: Path, monkeypatch) -> None:
    around = Run(tmp_path, tmp_path / "kept").surroundings()
    large = os.statvfs_result((4096, 4096, 1 << 30, 1 << 30, 1 << 30, 1, 1, 1, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: large)
    with pytest.raises(TargetMissingError, match="not filled"):
        asyncio.run(around.strike(fault("storagefull@1")))
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_run_without_storage_has_none_that_could_hang(tmp_path: Path) -> None:
    for text in ("storagehang@1", "storagefull@1"):
        with pytest.raises(TargetMissingError, match="give --persist"):
            asyncio.run(Run(tmp_path).surroundings().strike(fault(text)))
