"""Faults on real processes and real shared memory."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from castor_lab.faults.fault import Fault, FaultKind
from castor_lab.faults.machines import Struck, TargetMissingError, strike
from castor_records.run_record import RunRecord
from castor_runtime.arena import remove_dead
from castor_runtime.arena.arena import Arena
from castor_runtime.arena.layout import PartLayout
from castor_runtime.launcher.run_folder import RunFolder
from castor_runtime.processes import descendants, is_alive

# An agent with a host and two trainers below it.
AGENT = """
import os, time
if os.fork() == 0:
    for _ in range(2):
        if os.fork() == 0:
            break
    time.sleep(60)
time.sleep(60)
"""
RUN = "0123456789abcdef"
SHM = Path("/dev/shm")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, f"still not {what}"
        time.sleep(0.005)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


class Notes:
    """A network that writes down what is done to it; tests/cluster has a real one."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str, int]] = []

    def cut(self, agent: str) -> None:
        self.done.append(("cut", agent, 0))

    def slow(self, agent: str, bandwidth_bps: int) -> None:
        self.done.append(("slow", agent, bandwidth_bps))

    def clear(self, agent: str) -> None:
        self.done.append(("clear", agent, 0))


class Cluster:
    """Two agents of two ranks each, which do nothing; agent n fills machine n."""

    def __init__(self, path: Path) -> None:
        self.job = f"t{secrets.token_hex(4)}"
        self.folder = RunFolder(path)
        self.folder.prepare(overwrite=False)
        self.folder.write_run(RunRecord(job=self.job, run=RUN, pid=os.getpid()))
        self.doomed: list[str] = []
        self.agents: list[subprocess.Popen[bytes]] = []
        self.hosts: list[int] = []
        self.trainers: list[int] = []
        self.arenas: list[Arena] = []
        for machine in range(2):
            self._start(machine)

    def _start(self, machine: int) -> None:
        agent = subprocess.Popen([sys.executable, "-c", AGENT])
        wait_until(lambda: len(descendants(agent.pid)) == 3, "up")
        host, *trainers = descendants(agent.pid)
        arena = Arena(self.job, RUN, f"node-{machine}", b"f" * 16)
        arena.add_parts([PartLayout(2 * machine + local, 10_000, 64, 4096) for local in (0, 1)])
        self.agents.append(agent)
        self.hosts.append(host)
        self.trainers += trainers
        self.arenas.append(arena)
        name = f"node-{machine}"
        self.folder.agent(name).mkdir()
        document = {
            "incarnation": "1",
            "pid": agent.pid,
            "fork_server_pid": host,
            "trainers": {str(2 * machine + local): trainers[local] for local in (0, 1)},
            "generation": 1,
            "machine": machine,
            "segments": arena.segments(),
            "control": "",
        }
        (self.folder.agent(name) / "agent.json").write_text(json.dumps(document))

    def strike(
        self,
        kind: FaultKind,
        *targets: int | str,
        sent: str = "",
        network: Notes | None = None,
    ) -> list[Struck]:
        return strike(
            self.folder,
            Fault(kind, targets, signal=sent, bandwidth_bps=10**7),
            ranks_per_machine=2,
            root="node-1",
            doomed=self.doomed.append,
            network=network,
        )

    def commit(self, rank: int, iteration: int) -> None:
        replica = self.arenas[rank // 2].replica(rank)
        writing = replica.begin(iteration, 1, iteration - 1)
        writing.data[:] = bytes([iteration]) * len(writing.data)
        writing.commit(b"meta")

    def segments(self) -> list[str]:
        return sorted(path.name for path in SHM.glob(f"castor-{self.job}-*"))

    def close(self) -> None:
        for agent in self.agents:
            for pid in [*descendants(agent.pid), agent.pid]:
                os.kill(pid, signal.SIGKILL)
            agent.wait()
        for pid in (*self.hosts, *self.trainers):
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        for arena in self.arenas:
            arena.close(unlink=True)
        remove_dead(job=self.job)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path / "run")
    yield made
    made.close()
    assert list(SHM.glob(f"castor-{made.job}*")) == []


def test_a_killed_machine_loses_its_processes_and_its_memory_alone(cluster: Cluster) -> None:
    extra = SHM / f"castor-{cluster.job}-{RUN}-node-0-control"
    extra.touch()
    before_ns = time.time_ns()
    (struck,) = cluster.strike(FaultKind.MACHINE, 0)
    assert (struck.target, struck.kind, struck.agent) == ("machine:0", "hardware", "node-0")
    assert (struck.machine, struck.rank) == (0, None)
    assert before_ns <= struck.time_ns <= time.time_ns()
    assert cluster.doomed == ["node-0"]
    dead = [cluster.agents[0].pid, cluster.hosts[0], *cluster.trainers[:2]]
    wait_until(lambda: not any(map(is_alive, dead)), "dead")
    assert all(map(is_alive, [cluster.agents[1].pid, cluster.hosts[1], *cluster.trainers[2:]]))
    assert cluster.segments() == [f"castor-{cluster.job}-{RUN}-node-1-r{rank}" for rank in (2, 3)]
    with pytest.raises(TargetMissingError, match="machine 0"):
        cluster.strike(FaultKind.MACHINE, 1, 0)
    assert is_alive(cluster.agents[1].pid), "one target is missing: none is struck"
    assert [one.agent for one in cluster.strike(FaultKind.ROOT)] == ["node-1"]
    assert cluster.segments() == []


def test_a_trainer_is_killed_or_stopped_alone(cluster: Cluster) -> None:
    (struck,) = cluster.strike(FaultKind.RANK, 3)
    assert (struck.target, struck.kind, struck.machine, struck.rank) == ("rank:3", "software", 1, 3)
    wait_until(lambda: not is_alive(cluster.trainers[3]), "dead")
    assert all(map(is_alive, cluster.trainers[:3]))
    cluster.strike(FaultKind.STOP, 0)
    wait_until(lambda: state(cluster.trainers[0]) == "T", "stopped")
    cluster.strike(FaultKind.RANK, 1, sent="STOP")
    wait_until(lambda: state(cluster.trainers[1]) == "T", "stopped")
    assert cluster.doomed == []
    assert len(cluster.segments()) == 4
    with pytest.raises(TargetMissingError, match="rank 3"):
        cluster.strike(FaultKind.RANK, 3)


def test_an_agent_is_killed_or_stopped_alone_and_keeps_its_memory(cluster: Cluster) -> None:
    cluster.strike(FaultKind.AGENTSTOP, 1)
    wait_until(lambda: state(cluster.agents[1].pid) == "T", "stopped")
    (struck,) = cluster.strike(FaultKind.AGENT, "node-0")
    assert (struck.target, struck.kind) == ("agent:0", "software")
    wait_until(lambda: not is_alive(cluster.agents[0].pid), "dead")
    assert is_alive(cluster.hosts[0])
    assert len(cluster.segments()) == 4
    cluster.strike(FaultKind.MACHINE, 1, sent="STOP")
    wait_until(lambda: state(cluster.trainers[3]) == "T", "stopped")
    assert cluster.doomed == []
    with pytest.raises(ValueError, match="store happens to no machine"):
        cluster.strike(FaultKind.STORE)


def test_a_flipped_bit_damages_every_complete_iteration_of_the_own_part(cluster: Cluster) -> None:
    with pytest.raises(TargetMissingError, match="no complete checkpoint"):
        cluster.strike(FaultKind.FLIP, 1)
    wait_until(lambda: state(cluster.trainers[2]) != "T", "going on")
    time.sleep(0.05)
    assert state(cluster.trainers[2]) == "S", "a trainer is spared where there is nothing to damage"
    for iteration in (1, 2):
        for rank in (2, 3):
            cluster.commit(rank, iteration)
    (struck,) = cluster.strike(FaultKind.FLIP, 1)
    assert (struck.target, struck.kind, struck.rank) == ("flip:1", "software", 2)
    wait_until(lambda: not is_alive(cluster.trainers[2]), "dead")
    for iteration in (1, 2):
        assert cluster.arenas[1].replica(2).verify(iteration) == [1]
        assert cluster.arenas[1].replica(3).verify(iteration) == []


def test_a_fault_of_a_link_harms_no_process_and_needs_a_network(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="emulated cluster"):
        cluster.strike(FaultKind.LINK, 0)
    network = Notes()
    with pytest.raises(TargetMissingError, match="spare-7"):
        cluster.strike(FaultKind.LINK, 0, "spare-7", network=network)
    assert network.done == [], "one target is missing: none is struck"
    struck = cluster.strike(FaultKind.LINK, 0, "node-1", network=network)
    assert [(one.target, one.kind, one.machine) for one in struck] == [
        ("link:0", "software", 0),
        ("link:1", "software", 1),
    ]
    cluster.strike(FaultKind.SLOW, 1, network=network)
    assert network.done == [("cut", "node-0", 0), ("cut", "node-1", 0), ("slow", "node-1", 10**7)]
    assert cluster.doomed == []
    assert all(is_alive(pid) for pid in (*cluster.hosts, *cluster.trainers))
    cluster.strike(FaultKind.MACHINE, 1, sent="STOP", network=network)
    cluster.strike(FaultKind.MACHINE, 0, network=network)
    assert network.done[3:] == [("clear", "node-0", 0)], "only a machine that is gone is cleared"
    assert not any(is_alive(pid) for pid in (cluster.hosts[0], *cluster.trainers[:2]))
