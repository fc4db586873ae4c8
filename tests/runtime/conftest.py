"""Real ranks over gloo, real shared memory, and a stand-in for the agents on their links."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from castor_policy.job_options import DeviceOptions, JobOptions, TrafficOptions
from castor_policy.placement import place
from castor_runtime.arena import Arena, ControlBlock, JobLock, PartLayout
from castor_runtime.stores import EmbeddedEtcd
from castor_runtime.trainer.agent_link import TrainerSettings

if TYPE_CHECKING:
    from castor_lab.fake_cuda import FakeCuda

HOST = Path(__file__).with_name("checkpointer_host.py")
EXCHANGE = Path(__file__).with_name("exchange_program.py")
RUN = "0123456789abcdef"
DEADLINE_S = 240.0

RunCases = Callable[[int, Path, list[dict[str, Any]]], list[dict[str, Any]]]


class Host:
    """The warm process; see checkpointer_host.py."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HOST)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._pids: queue.Queue[int] = queue.Queue()
        self.exited: dict[int, int] = {}
        self._ready = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        assert self._ready.wait(DEADLINE_S)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "exited" in message:
                self.exited[message["exited"]] = message["code"]
            elif "pid" in message:
                self._pids.put(message["pid"])
            else:
                self._ready.set()

    def fork(self, order: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._pids.get(timeout=DEADLINE_S)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(DEADLINE_S)


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    """A fake GPU in torch's place, and this thread's."""
    from castor_lab.fake_cuda import FakeCuda  # noqa: PLC0415 - it imports torch

    fake = FakeCuda()
    fake.set_device(fake.device)
    with fake.installed():
        yield fake


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    warm = Host()
    yield warm
    warm.close()


class Cluster:
    """N machines with their arenas; `run` starts one generation of trainers on them."""

    def __init__(
        self, host: Host, folder: Path, machines: int, replicas: int, ranks_per_machine: int = 1
    ) -> None:
        self._host = host
        self._folder = folder
        self.machines = machines
        self.per_machine = ranks_per_machine
        self.rows = place("group", machines, replicas).replicas
        self._job = f"test-{os.getpid()}-{time.monotonic_ns() % 10**9}"
        self._lock = JobLock(self._job, RUN)  # what nobody holds is cleared away as dead
        self.arenas: dict[int, Arena] = {}
        self._runs: list[Generation] = []
        self._controls = [
            ControlBlock.create(self._job, RUN, f"node-{m}", ranks_per_machine)
            for m in range(machines)
        ]
        self.generation = 0
        self.world = machines * ranks_per_machine

    def close(self) -> None:
        for run in self._runs:
            run.kill()
        for arena in self.arenas.values():
            arena.close(unlink=True)
        for control in self._controls:
            control.close(unlink=True)
        self._lock.close()

    def run(self, program: str, options: dict[str, Any], **settings: Any) -> Generation:
        """Start all ranks; `settings`: options of traffic, and `device` and `redundant`."""
        self.generation += 1
        self._runs.append(Generation(self, self._host, self._folder, program, options, settings))
        return self._runs[-1]

    def lose_machine(self, machine: int) -> None:
        self.arenas.pop(machine).close(unlink=True)

    def ranks_of(self, machine: int) -> list[int]:
        return [machine * self.per_machine + local for local in range(self.per_machine)]

    def held_by(self, machine: int) -> list[int]:
        return [r for m, row in enumerate(self.rows) if machine in row for r in self.ranks_of(m)]

    def prepare(self, layouts: dict[int, dict[str, Any]]) -> tuple[int, dict[int, str]]:
        """Make the arenas; return the iteration to load and every machine's tier."""
        print_of = {layout["fingerprint"] for layout in layouts.values()}
        assert len(print_of) == 1
        for machine in range(self.machines):
            if machine not in self.arenas:
                name = f"node-{machine}"
                self.arenas[machine] = Arena(self._job, RUN, name, bytes.fromhex(min(print_of)))
            parts = [
                PartLayout(r, *(layouts[r][k] for k in ("data_bytes", "meta_bytes", "chunk_bytes")))
                for r in self.held_by(machine)
            ]
            self.arenas[machine].add_parts(parts)
        common = set.intersection(*(self._whole(rank) for rank in range(self.world)))
        if not common:
            return 0, dict.fromkeys(range(self.machines), "scratch")
        return max(common), {m: self._fetch(m, max(common)) for m in range(self.machines)}

    def _whole(self, rank: int) -> set[int]:
        return {
            iteration
            for machine in self.rows[rank // self.per_machine]
            for iteration in self.arenas[machine].replica(rank).offered()
        }

    def _fetch(self, machine: int, iteration: int) -> str:
        tier = "own_memory"
        for rank in self.held_by(machine):
            replica = self.arenas[machine].replica(rank)
            if iteration not in replica.offered():
                for other in self.rows[rank // self.per_machine]:
                    source = self.arenas[other].replica(rank)
                    if iteration in source.offered():
                        snapshot = source.snapshot(iteration)
                        writing = replica.begin(iteration, self.generation, None)
                        writing.data[:] = snapshot.data
                        writing.make_room(len(snapshot.meta))
                        writing.commit(snapshot.meta)
                        break
                tier = "peer"
            replica.keep_only(iteration)
        return tier


class Generation:
    """One attempt at running all ranks, with the agents' side of their links."""

    def __init__(
        self,
        cluster: Cluster,
        host: Host,
        folder: Path,
        program: str,
        options: dict[str, Any],
        settings: dict[str, Any],
    ) -> None:
        self.cluster = cluster
        self._host = host
        self._folder = folder / f"g{cluster.generation}"
        self._folder.mkdir()
        self._changed = threading.Condition()
        self.messages: dict[int, list[dict[str, Any]]] = {r: [] for r in range(cluster.world)}
        self._links: dict[int, socket.socket] = {}
        self._redundant = settings.pop("redundant", True)
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(self._folder / "link"))
        self._server.listen()
        threading.Thread(target=self._accept, daemon=True).start()
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.pids = [
            host.fork(self._order(rank, port, program, options, settings))
            for rank in range(cluster.world)
        ]

    def _order(
        self, rank: int, port: int, program: str, options: dict[str, Any], settings: dict[str, Any]
    ) -> dict[str, Any]:
        cluster = self.cluster
        machine, local = divmod(rank, cluster.per_machine)
        trainer: dict[str, Any] = {
            "job": cluster._job,
            "run": RUN,
            "rank": rank,
            "machine": machine,
            "local_rank": local,
            "generation": cluster.generation,
            "ranks_per_machine": cluster.per_machine,
            "replicas": cluster.rows,
            "socket": str(self._folder / "link"),
            "control": cluster._controls[machine].name,
            "started_ns": time.time_ns(),
        }
        device = settings.get("device", DeviceOptions())
        given = {name: value for name, value in settings.items() if name != "device"}
        traffic = TrafficOptions(**{"chunk_bytes": 4096, "profile_iterations": 2} | given)
        trainer |= JobOptions(traffic=traffic, device=device).groups()
        environment = {
            "RANK": str(rank),
            "WORLD_SIZE": str(cluster.world),
            "LOCAL_RANK": str(local),
            "LOCAL_WORLD_SIZE": str(cluster.per_machine),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "CASTOR_TRAINER": TrainerSettings(**trainer).to_json(),
        }
        log = str(self._folder / f"rank-{rank}.log")
        return {"environment": environment, "program": program, "options": options, "log": log}

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        # Closed here: left to the garbage collector it warns in whatever test runs then.
        with link, link.makefile("rb") as lines:
            self._take(link, lines)

    def _take(self, link: socket.socket, lines: Iterable[bytes]) -> None:
        rank = -1
        for line in lines:
            message = json.loads(line)
            with self._changed:
                if message["op"] == "hello":
                    rank = message["rank"]
                    self._links[rank] = link
                self.messages[rank].append(message)
                self._changed.notify_all()
                if message["op"] == "layout" and len(self._said("layout")) == self.cluster.world:
                    self._order_loads()
                if message["op"] == "corrupt":
                    self._repair(rank, message["iteration"])
                if message["op"] == "room":
                    machine = rank // self.cluster.per_machine
                    arena = self.cluster.arenas[machine]
                    arena.make_room(message["part"], message["meta_bytes"])

    def _said(self, op: str) -> dict[int, dict[str, Any]]:
        return {
            rank: message
            for rank, said in self.messages.items()
            for message in said
            if message["op"] == op
        }

    def _order_loads(self) -> None:
        self.iteration, self.tiers = self.cluster.prepare(self._said("layout"))
        for rank in range(self.cluster.world):
            self._order_load(rank, self.tiers[rank // self.cluster.per_machine])
        if self._redundant:
            self.say_redundant()

    def _order_load(self, rank: int, tier: str) -> None:
        segments = self.cluster.arenas[rank // self.cluster.per_machine].segments()
        order = {
            "op": "load",
            "iteration": self.iteration,
            "tier": tier,
            "segments": {str(held): name for held, name in segments.items()},
            "learned": None,
        }
        self._links[rank].sendall(json.dumps(order).encode() + b"\n")

    def _repair(self, rank: int, iteration: int) -> None:
        machine = rank // self.cluster.per_machine
        self.cluster.arenas[machine].replica(rank).mark_corrupt(iteration)
        self._order_load(rank, self.cluster._fetch(machine, iteration))

    def say_redundant(self) -> None:
        for link in self._links.values():
            link.sendall(b'{"op":"redundant"}\n')

    def events(self, rank: int, kind: str) -> list[dict[str, Any]]:
        with self._changed:
            return [
                message["fields"]
                for message in self.messages[rank]
                if message["op"] == "event" and message["kind"] == kind
            ]

    def wait_until(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE_S
        while not holds():
            failed = [pid for pid in self.pids if self._host.exited.get(pid, 0) != 0]
            assert not failed, self.logs()
            assert time.monotonic() < end, self.logs()
            time.sleep(0.01)

    def wait_completed(self, iteration: int) -> None:
        def complete() -> bool:
            return all(
                any(e["iteration"] >= iteration for e in self.events(r, "checkpoint_completed"))
                for r in range(self.cluster.world)
            )

        self.wait_until(complete)

    def kill(self) -> None:
        for pid in self.pids:
            if pid not in self._host.exited:
                os.kill(pid, signal.SIGKILL)
        self.wait_exit()

    def wait_exit(self) -> list[int]:
        end = time.monotonic() + DEADLINE_S
        while not all(pid in self._host.exited for pid in self.pids):
            assert time.monotonic() < end, self.logs()
            time.sleep(0.01)
        self._server.close()
        return [self._host.exited[pid] for pid in self.pids]

    def results(self) -> list[dict[str, Any]]:
        assert self.wait_exit() == [0] * self.cluster.world, self.logs()
        files = [self._folder / f"rank-{rank}.json" for rank in range(self.cluster.world)]
        return [json.loads(file.read_text()) for file in files]

    def logs(self) -> str:
        return "\n".join(
            f"--- {file.name}\n{file.read_text()[-3000:]}" for file in self._folder.glob("*.log")
        )


@pytest.fixture
def make_cluster(host: Host, tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    made: list[Cluster] = []

    def make(machines: int, replicas: int, ranks_per_machine: int = 1) -> Cluster:
        folder = tmp_path / f"c{len(made)}"
        folder.mkdir()
        made.append(Cluster(host, folder, machines, replicas, ranks_per_machine))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


def run_exchange_cases(
    world: int, folder: Path, cases: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Run exchange_program.py on so many ranks; return what each that did not leave wrote."""
    program = subprocess.Popen(
        [sys.executable, str(EXCHANGE), str(world), str(folder)],
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        program.communicate(json.dumps(cases), timeout=240)
        assert program.returncode == 0
    finally:
        if program.returncode is None:
            os.killpg(program.pid, signal.SIGKILL)
            program.wait()
    return [
        json.loads(path.read_text())
        for rank in range(world)
        if (path := folder / f"{rank}.json").exists()
    ]


@pytest.fixture(scope="session")
def run_cases() -> RunCases:
    """Runs cases of exchange_program.py: world, folder, cases."""
    return run_exchange_cases


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EmbeddedEtcd]:
    """An etcd of a test's own; some modules have one for all of theirs."""
    server = EmbeddedEtcd(tmp_path / "etcd")
    server.start()
    yield server
    server.stop()
