"""Emulated clusters in the real kernel: bandwidth, isolation, training on them, and their end."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from castor_configs.errors import InputError
from castor_lab.emulated_cluster.iproute import ip, ip_json
from castor_lab.emulated_cluster.layout import Cluster, Host, Wanted
from castor_lab.emulated_cluster.lifecycle import down, find, names, up
from castor_lab.emulated_cluster.links import cut, link_state, repair, restore, set_bandwidth
from castor_lab.emulated_cluster.namespaces import processes_in
from castor_lab.emulated_cluster.storage_host import StorageHost
from castor_lab.emulated_cluster.storage_traffic import storage_environment
from castor_lab.soak.trial import Trial, plain, train
from castor_records.events.failures import Replaced
from castor_records.events.storing import Persisted
from castor_runtime.processes import is_alive

pytestmark = pytest.mark.long

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "gpt2_tiny.py"
PACED = (
    str(EXAMPLE),
    *("--iterations", "30", "--layers", "2", "--hidden", "32", "--sequence", "32", "--batch", "2"),
    *("--paced-layer-ms", "25"),
)

HOST_BPS = 80_000_000
STORAGE_BPS = 16_000_000


@pytest.fixture(autouse=True)
def clusters_can_be_emulated(needs: Callable[..., None]) -> None:
    needs("ip", "tc", "setpriv", root=True)


SINK = """
import socket, sys, time
server = socket.create_server((sys.argv[1], 5000))
print("listening", flush=True)
connection, _ = server.accept()
buffer, count = bytearray(1 << 20), connection.recv_into(bytearray(1 << 20))
began, total = time.monotonic(), 0
while count := connection.recv_into(buffer):
    total += count
print(total * 8 / (time.monotonic() - began), flush=True)
"""
SOURCE = """
import socket, sys
left = int(sys.argv[2])
with socket.create_connection((sys.argv[1], 5000), timeout=60) as connection:
    while left > 0:
        piece = bytes(min(left, 1 << 18))
        connection.sendall(piece)
        left -= len(piece)
"""
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1.5).close()
except OSError as error:
    sys.exit(type(error).__name__)
"""
STORE = """
import sys, time
from castor_runtime.pacing import storage_pacer
pacer = storage_pacer(reading=sys.argv[1] == "read")
pacer.pace(1 << 16)  # the bucket is full at first
print("ready", flush=True)
sys.stdin.readline()
began = time.monotonic()
for _ in range(8):
    pacer.pace(int(sys.argv[2]) // 8)
print(began, time.monotonic())
"""


def inside(host: Host, program: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["ip", "netns", "exec", host.namespace, sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    )


def output(process: subprocess.Popen[str]) -> str:
    said, complained = process.communicate(timeout=60)
    assert process.returncode == 0, complained
    return said


def undisturbed_bps(measure: Callable[[], float], bandwidth_bps: int) -> float:
    """Measure again what was too slow: a machine in use by other tests makes it slower, never
    faster.
    """
    for _ in range(5):
        measured = measure()
        if measured > 0.9 * bandwidth_bps:
            break
    return measured


def transfer_bps(source: Host, sink: Host, bandwidth_bps: int) -> float:
    """Measure with one connection that lasts half a second at the bandwidth."""
    return undisturbed_bps(lambda: _transfer_bps(source, sink, bandwidth_bps), bandwidth_bps)


def _transfer_bps(source: Host, sink: Host, bandwidth_bps: int) -> float:
    server = inside(sink, SINK, sink.address)
    assert server.stdout is not None
    assert server.stdout.readline() == "listening\n"
    output(inside(source, SOURCE, sink.address, str(bandwidth_bps // 16)))
    return float(output(server))


def storage_bps(storage: str, way: str, *hosts: Host) -> float:
    """Measure all of `hosts` at once, each with half a second's bytes: what the storage carried."""
    return undisturbed_bps(lambda: _storage_bps(storage, way, *hosts), STORAGE_BPS)


def _storage_bps(storage: str, way: str, *hosts: Host) -> float:
    size_bytes = STORAGE_BPS // 16
    where = storage_environment(storage)
    running = [inside(host, STORE, way, str(size_bytes), **where) for host in hosts]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    # From the first start to the last end: a sum of each one's own rate is more than the
    # storage carried where one was alone for a while. Namespaces share the monotonic clock.
    began_s, ended_s = zip(
        *(map(float, output(process).split()) for process in running), strict=True
    )
    return 8 * size_bytes * len(hosts) / (max(ended_s) - min(began_s))


def received_bytes(host: Host) -> int:
    (link,) = ip_json("-statistics", "link", "show", "dev", "eth0", namespace=host.namespace)
    return int(link["stats64"]["rx"]["bytes"])


def reaches(host: Host, address: str, port: int) -> bool:
    process = inside(host, CONNECT, address, str(port))
    _, complained = process.communicate(timeout=60)
    return process.returncode == 0 or "ConnectionRefusedError" in complained


@contextmanager
def emulated(nodes: int, spares: int = 0, bandwidth_bps: int = HOST_BPS) -> Iterator[Cluster]:
    name = f"t{secrets.token_hex(3)}"
    try:
        yield up(Wanted(name, nodes, spares, bandwidth_bps, STORAGE_BPS))
    finally:
        down(name)
        assert name not in names()
        assert leftovers(name) == []


def leftovers(name: str) -> list[str]:
    """Return namespaces and links with the cluster's name in them, by the kernel's own lists."""
    listed = [*Path("/run/netns").iterdir(), *Path("/sys/class/net").iterdir()]
    return [one.name for one in listed if f"castor-{name}" in one.name]


def test_links_have_their_bandwidth_each_way_and_can_be_cut_and_slowed() -> None:
    with emulated(2) as cluster:
        first, second = cluster.hosts
        assert transfer_bps(first, second, HOST_BPS) == pytest.approx(HOST_BPS, rel=0.15)
        assert transfer_bps(second, first, HOST_BPS) == pytest.approx(HOST_BPS, rel=0.15)
        # The slowest link of a path decides, whichever end it is at.
        for source, sink in ((first, cluster.storage), (cluster.storage, first)):
            assert transfer_bps(source, sink, STORAGE_BPS) == pytest.approx(STORAGE_BPS, rel=0.15)
        set_bandwidth(second, 2 * STORAGE_BPS)
        for source, sink in ((first, second), (second, first)):
            measured = transfer_bps(source, sink, 2 * STORAGE_BPS)
            assert measured == pytest.approx(2 * STORAGE_BPS, rel=0.15)
        assert not link_state(second).as_built
        cut(second)
        assert not reaches(first, second.address, 6000)
        assert not reaches(second, cluster.gateway, 6000)
        assert reaches(first, cluster.gateway, 6000)
        restore(second)
        assert reaches(first, second.address, 6000)
        assert [repair(host) for host in (first, second)] == [False, True]
        assert link_state(second).as_built
        assert transfer_bps(first, second, HOST_BPS) == pytest.approx(HOST_BPS, rel=0.15)


def test_a_host_sees_its_cluster_and_nothing_else() -> None:
    with emulated(1) as one, emulated(1) as other:
        host = one.hosts[0]
        assert reaches(host, one.gateway, 6000)
        assert reaches(host, one.storage.address, 6000)
        assert not reaches(host, other.gateway, 6000)
        assert not reaches(host, other.hosts[0].address, 6000)
        with subprocess.Popen(
            [sys.executable, "-c", SINK, "127.0.0.1"], stdout=subprocess.PIPE
        ) as local:
            assert local.stdout is not None
            assert local.stdout.readline() == b"listening\n"
            refused = inside(host, CONNECT, "127.0.0.1", "5000")
            assert "ConnectionRefusedError" in refused.communicate()[1], "it has its own loopback"
            local.kill()


def test_storage_is_as_slow_as_its_link_and_shared(tmp_path: Path) -> None:
    with emulated(2) as cluster:
        server = StorageHost(cluster.storage, tmp_path / "storage.log")
        try:
            for way in ("write", "read"):
                alone_bps = storage_bps(server.address, way, cluster.hosts[0])
                assert alone_bps == pytest.approx(STORAGE_BPS, rel=0.15)
                both_bps = storage_bps(server.address, way, *cluster.hosts)
                assert both_bps == pytest.approx(STORAGE_BPS, rel=0.15)
            assert list(processes_in(cluster.storage.namespace)) == [server.pid]
        finally:
            server.close()
        assert not is_alive(server.pid)
        assert (tmp_path / "storage.log").read_text() == ""


def test_nothing_is_left_of_a_cluster_whatever_state_it_is_in() -> None:
    with emulated(2) as cluster:
        name = cluster.name
        with pytest.raises(InputError, match="is up, or a crash left some of it"):
            up(Wanted(name, 1, 0, HOST_BPS, STORAGE_BPS))
        assert find(name) == cluster, "the refusal has left it alone"
        running = inside(cluster.hosts[0], "import time; time.sleep(600)")
        while not processes_in(cluster.hosts[0].namespace):
            time.sleep(0.01)
        # As a crash halfway through would leave it.
        ip("netns", "delete", cluster.hosts[1].namespace)
        with pytest.raises(InputError, match="castor cluster down"):
            up(Wanted(name, 1, 0, HOST_BPS, STORAGE_BPS))
        removed = down(name)
        assert removed.processes == (running.pid,)
        running.communicate()
        assert leftovers(name) == []
        assert down(name) == type(removed)((), (), ())
        with pytest.raises(InputError, match="no emulated cluster"):
            find(name)


def test_a_cluster_that_cannot_be_made_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def fail(host: Host, *_: int) -> None:
        made.append(host.cluster)
        raise OSError("the kernel has had enough")

    monkeypatch.setattr("castor_lab.emulated_cluster.lifecycle.connect", fail)
    with pytest.raises(OSError, match="had enough"):
        up(Wanted(f"t{secrets.token_hex(3)}", 1, 0, HOST_BPS, STORAGE_BPS))
    assert leftovers(made[0]) == []


def test_the_command_makes_shows_and_removes_one() -> None:
    castor = str(Path(sys.executable).with_name("castor"))
    name = f"t{secrets.token_hex(3)}"

    def run(*arguments: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        command = [*before, castor, "cluster", *arguments, "--name", name]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    try:
        rates = ("--bandwidth", "100mbit", "--storage-bandwidth", "50mbit")
        refused = run("up", before=("setpriv", "--reuid=65534", "--clear-groups"))
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "only root may make" in refused.stderr
        made = run("up", "--nodes", "2", *rates)
        assert made.returncode == 0, made.stderr
        assert f"castor train --cluster {name}" in made.stdout
        shown = json.loads(run("status", "--json").stdout)
        assert [host["host"] for host in shown["hosts"]] == [
            "node-0",
            "node-1",
            "spare-0",
            "storage",
        ]
        assert [host["built_bps"] for host in shown["hosts"]] == [10**8] * 3 + [5 * 10**7]
        assert {host["link"] for host in shown["hosts"]} == {"up"}
        cut(find(name).hosts[1])
        assert "cut" in run("status").stdout
        assert run("down").stdout == f"cluster {name}: 5 namespaces removed\n"
        assert run("down").stdout == f"cluster {name}: nothing is there\n"
        assert run("status").returncode == 2
    finally:
        down(name)


def test_a_cut_machine_is_replaced_and_stops_its_own_trainers(
    castor_train: Callable[..., Trial], baseline: Callable[[int, int], str]
) -> None:
    with emulated(4, spares=1, bandwidth_bps=10**9) as cluster:
        trial = castor_train("--cluster", cluster.name, "--kill", "link:2@10")
        assert all(link_state(host).as_built for host in cluster.hosts)
        assert trial.code == 0
        (recovery,) = trial.recoveries
        assert (recovery["machines"], recovery["kind"]) == ([2], "hardware")
        assert set(recovery["sources"].values()) == {"own_memory", "peer:node-3"}
        assert trial.sha256 == baseline(4, 30), "a network changes no bit"
        (replaced,) = trial.of(Replaced)
        assert replaced.event.agent == "spare-0"
        cut_off = json.loads((trial.folder / "agents" / "node-2" / "agent.json").read_text())
        assert cut_off["trainers"] == {}, "nobody could tell it: it has stopped them itself"
        assert trial.result["cluster"]["name"] == cluster.name
        assert trial.result["cluster"]["bandwidth_bps"] == 10**9


def test_paced_runs_survive_lost_machines_and_slow_links_bit_for_bit(
    tmp_path: Path,
) -> None:
    """Two machines are lost one after the other; the second replacement gets a lost one's host."""

    def paced(name: str, *options: str) -> Trial:
        trial = train(tmp_path / name, ["--lease", "3s", *options, *PACED])
        assert trial.code == 0, trial.output
        assert (trial.processes_left, trial.memory_left) == ((), ())
        assert trial.result["compute"] == "paced"
        assert "compute is paced" in plain(trial.output)
        return trial

    with emulated(4, spares=1, bandwidth_bps=10**9) as cluster:
        on = ("--cluster", cluster.name)
        persist = ("--persist", str(tmp_path / "persistent"), "--persist-every", "1s")
        whole = paced("whole", *on, *persist)
        assert whole.recoveries == []
        persisted = {entry.event.iteration for entry in whole.of(Persisted)}
        newest = max((tmp_path / "persistent").glob("global_step*"))
        stored_bytes = sum(file.stat().st_size for file in newest.iterdir())
        assert persisted
        assert received_bytes(cluster.storage) > 0.9 * stored_bytes * len(persisted)
        failures = ("link:3@4/1s", "slow:1@6/20mbit", "machine:0@8", "machine:2@20")
        kills = [word for failure in failures for word in ("--kill", failure)]
        hurt = paced("hurt", *on, *kills)
        assert [one["machines"] for one in hurt.recoveries] == [[0], [2]]
        assert hurt.sha256 == whole.sha256
        assert "the link of agent node-3 is restored" in plain(hurt.output)
        assert all(link_state(host).as_built for host in cluster.hosts)


def test_a_run_that_the_cluster_cannot_hold_is_refused(castor_train: Callable[..., Trial]) -> None:
    with emulated(2) as cluster:
        small = castor_train("--cluster", cluster.name, "--nodes", "3")
        assert small.code == 2
        assert f"cluster {cluster.name} has 2 hosts" in plain(small.output)
        running = inside(cluster.hosts[0], "import time; time.sleep(600)")
        while not processes_in(cluster.hosts[0].namespace):
            time.sleep(0.01)
        busy = castor_train("--cluster", cluster.name, "--nodes", "2", "--overwrite")
        assert busy.code == 2
        assert "one run at a time" in plain(busy.output)
        running.kill()
        running.communicate()
    for options in (("--cluster", "none"), ("--kill", "link:1@3"), ("--kill", "slow:1@3/1mbit")):
        assert castor_train(*options, "--overwrite").code == 2
