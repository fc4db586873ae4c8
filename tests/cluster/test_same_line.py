"""`castor run`: the same line on every host, in any order, and nobody stays in between."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from castor_lab.soak.trial import Process, start_castor
from castor_records.event_log import merge
from castor_records.recoveries import last_iteration
from castor_runtime.launcher.final_state import final_state
from castor_runtime.stores import EmbeddedEtcd

pytestmark = pytest.mark.long

CASTOR = str(Path(sys.executable).with_name("castor"))
ITERATIONS = 30
DEADLINE_S = 120.0


class Hosts:
    """Hosts of one job: each a process that was given the same line, but for its name."""

    def __init__(self, folder: Path, store: str, program: Sequence[str]) -> None:
        self.job = f"same-{secrets.token_hex(3)}"
        self.folder = folder
        self.store = store
        self._program = program
        self.processes: dict[str, Process] = {}
        (folder / "secret").write_bytes(os.urandom(32))

    def line(self, name: str, *options: str) -> list[str]:
        return [
            *("run", "--nnodes", "2:3", "--job", self.job, "--store", self.store),
            *("--secret", str(self.folder / "secret"), "--lease", "3s", "--name", name),
            *("--folder", str(self.folder / name), *options, *self._program),
            *("--iterations", str(ITERATIONS)),
        ]

    def start(self, *names: str) -> None:
        for name in names:
            self.processes[name] = start_castor(
                self.line(name),
                self.folder / f"{name}.log",
                environment={"OMP_NUM_THREADS": "1"},
            )

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def events(self, name: str) -> str:
        return (self.folder / name / "events.jsonl").read_text()

    def kill(self, *names: str) -> None:
        for name in names:
            self.processes[name].send_signal(signal.SIGKILL)
        for name in names:
            self.processes[name].wait(DEADLINE_S)

    def iteration(self) -> int:
        return last_iteration(merge(self.folder.glob("*/events.jsonl")))

    def wait_until(self, holds: Callable[[], bool]) -> None:
        give_up_s = time.monotonic() + DEADLINE_S
        while not holds():
            assert time.monotonic() < give_up_s, {n: self.said(n) for n in self.processes}
            time.sleep(0.05)

    def end(self) -> dict[str, int]:
        return {name: process.wait(DEADLINE_S) for name, process in self.processes.items()}

    def final(self) -> tuple[int | None, str | None]:
        files = sorted(self.folder.glob("*/final.json"))
        return final_state([json.loads(file.read_text()) for file in files], 2)

    def castor(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [CASTOR, *arguments], capture_output=True, text=True, check=False, timeout=DEADLINE_S
        )


@pytest.fixture
def hosts(tmp_path: Path, program: tuple[str, ...]) -> Iterator[Hosts]:
    etcd = EmbeddedEtcd(tmp_path / "etcd")
    etcd.start()
    made = Hosts(tmp_path, etcd.url, program)
    yield made
    for process in made.processes.values():
        process.kill()
        process.wait()
    subprocess.run([CASTOR, "clean", "--job", made.job], check=False, capture_output=True)
    etcd.close()


def test_hosts_begin_in_any_order_and_whoever_dies_comes_again_by_the_same_line(
    hosts: Hosts, baseline: Callable[[int, int], str]
) -> None:
    hosts.start("c", "b", "a")
    hosts.wait_until(lambda: hosts.iteration() >= 5)
    told = [hosts.said(name) for name in "abc"]
    assert sum("2 machines begin it, more are spares" in one for one in told) == 1
    assert sum(f"joins job {hosts.job}" in one for one in told) == 2
    # All at once: nobody is left who knows of the job but the store, and memory.
    hosts.kill("a", "b", "c")
    before = hosts.iteration()
    trained = [name for name in "abc" if '"iteration_ended"' in hosts.events(name)]
    # A spare that is back first fills the place of one that is not yet, out of a peer's memory.
    hosts.start(*trained)
    hosts.wait_until(lambda: hosts.iteration() > before)
    hosts.start(*{*"abc"} - {*trained})
    assert set(hosts.end().values()) == {0}
    assert hosts.final() == (ITERATIONS, baseline(2, ITERATIONS))
    assert all('"source":"own_memory"' in hosts.events(name) for name in trained)
    assert before >= 5
    assert not list(Path("/dev/shm").glob(f"*{hosts.job}*"))

    again = hosts.castor(*hosts.line("a"))
    assert (again.returncode, again.stdout) == (0, "")
    assert f"has finished; to train anew, remove it first: castor rm {hosts.job}" in again.stderr
    other = hosts.castor(*hosts.line("a", "--mu", "0.5"))
    assert other.returncode == 2
    assert "traffic.mu is 0.5 here and 0.9 in the job" in other.stderr
    removal = ("rm", hosts.job, "--store", hosts.store)
    assert hosts.castor(*removal).returncode == 0
    gone = hosts.castor(*removal)
    assert (gone.returncode, "has no job" in gone.stderr) == (2, True)
