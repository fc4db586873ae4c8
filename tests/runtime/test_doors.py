"""Nobody but its owner gets at a job: its store, the place where its trainers meet, its peers."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.store_keys import agents_prefix, spec_key
from castor_policy.store import KeyValue, Put, StoreUnavailableError, Txn
from castor_runtime.agent import rendezvous
from castor_runtime.launcher.job_view import JobView
from castor_runtime.launcher.status import status_document
from castor_runtime.stores import EmbeddedEtcd, open_store
from castor_runtime.stores.versions import etcd_program, fault_of, parse_version, version_of
from castor_runtime.trainer import meeting
from castor_runtime.transport import JobSecret, PeerServer

pytestmark = pytest.mark.long  # all of it starts real processes

DEADLINE_S = 60.0


BECOME_NOBODY = """
import encodings.idna, http.client, os, pwd, socket, ssl, sys  # before they are out of reach
nobody = pwd.getpwnam("nobody")
os.setgroups([]), os.setgid(nobody.pw_gid), os.setuid(nobody.pw_uid)
"""


def as_nobody(program: str, *arguments: str) -> str:
    """Run a Python program as another user of this machine; return what it says."""
    # The interpreter itself may be where the other user may not go.
    done = subprocess.run(
        [sys.executable, "-I", "-c", BECOME_NOBODY + textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        cwd="/",
        check=False,
    )
    return done.stdout + done.stderr


@pytest.fixture
def open_folder(tmp_path: Path, needs: Callable[..., None]) -> Path:
    """A folder that every user can reach, as a run folder may be; another user will try."""
    needs(root=True)
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    return tmp_path


CONNECT_UNIX = """
    import socket, sys
    s = socket.socket(socket.AF_UNIX)
    try:
        s.connect(sys.argv[1])
    except OSError as error:
        print(type(error).__name__)
    else:
        print("connected")
"""


def test_another_user_does_not_reach_the_store(open_folder: Path) -> None:
    etcd = EmbeddedEtcd(open_folder / "etcd")
    etcd.start()
    try:
        path = etcd.url.removeprefix("etcd+unix://")
        # Were it not for the folder, anybody could connect.
        for name in ("etcd:0", "peer:0"):
            answer = as_nobody(CONNECT_UNIX, str(Path(path).with_name(name)))
            assert "PermissionError" in answer
        listed = as_nobody(
            "import os, sys\nprint([os.access(p, os.R_OK) for p in sys.argv[1:]])",
            str(open_folder / "etcd" / "data"),
            str(Path(path).parent),
        )
        assert listed.strip() == "[False, False]"
        store = open_store(etcd.url)
        assert asyncio.run(_write_and_read(store)) == "1"
    finally:
        etcd.close()


async def _write_and_read(store: object) -> str:
    await store.transact(Txn((), (Put("/castor/j/x", "1"),)))  # type: ignore[attr-defined]
    found, _ = await store.get_prefix("/castor/j/")  # type: ignore[attr-defined]
    await store.close()  # type: ignore[attr-defined]
    return found[0].value


def test_a_folder_with_a_long_name_has_its_socket_elsewhere_and_takes_it_along(
    tmp_path: Path,
) -> None:
    etcd = EmbeddedEtcd(tmp_path / ("long" * 25) / "etcd")
    etcd.start()
    folder = Path(etcd.url.removeprefix("etcd+unix://")).parent
    try:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert asyncio.run(_write_and_read(open_store(etcd.url))) == "1"
    finally:
        etcd.close()
    assert not folder.exists()


def test_an_etcd_at_an_address_serves_only_who_has_the_runs_certificate(
    open_folder: Path,
) -> None:
    etcd = EmbeddedEtcd(open_folder / "etcd", host="127.0.0.1")
    etcd.start()
    try:
        host, port = etcd.endpoint
        assert asyncio.run(_write_and_read(open_store(etcd.url))) == "1"

        async def stranger() -> None:
            store = open_store(f"etcd://{host}:{port}", timeout_s=1.0)
            try:
                await store.get_prefix("/castor/")
            finally:
                await store.close()

        with pytest.raises(StoreUnavailableError):
            asyncio.run(stranger())
        folder = open_folder / "etcd" / "certificates"
        files = [str(folder / name) for name in ("client.key", "client.pem", "server.key")]
        check = "import os, sys\nprint([os.access(p, os.R_OK) for p in sys.argv[1:]])"
        assert as_nobody(check, *files).strip() == "[False, False, False]"
        assert not (folder / "ca.key").exists(), "nobody else is ever given a certificate"
        # Its certificate is asked for, not only TLS spoken.
        handshake = """
            import http.client, ssl, sys
            context = ssl._create_unverified_context()
            try:
                c = http.client.HTTPSConnection(sys.argv[1], int(sys.argv[2]), context=context)
                c.request("GET", "/version")
                print("answered", c.getresponse().status)
            except OSError as error:
                print("refused", type(error).__name__)
        """
        assert "refused" in as_nobody(handshake, str(host), str(port))
    finally:
        etcd.close()


def test_status_asks_a_store_that_wants_a_certificate(tmp_path: Path) -> None:
    etcd = EmbeddedEtcd(tmp_path / "etcd", host="127.0.0.1")
    etcd.start()
    castor = str(Path(sys.executable).with_name("castor"))

    def status() -> tuple[int, str, str]:
        command = [castor, "status", "--json", "--store", etcd.url, "--job", "j"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
        return done.returncode, done.stdout, done.stderr

    async def write(spec: JobSpec) -> None:
        store = open_store(etcd.url)
        await store.transact(Txn((), (Put(spec_key("j"), spec.to_json()),)))
        await store.close()

    try:
        asyncio.run(write(JobSpec("j", 1, 1, "group", ((0,),), "train.py")))
        code, said, complained = status()
        assert code == 0, complained
        assert json.loads(said)["phase"] == "starting"
        key = tmp_path / "etcd" / "certificates" / "client.key"
        key.unlink()
        unreadable = f"castor: --store: cannot read {key}, which the store's address names\n"
        assert status() == (2, "", unreadable)
    finally:
        etcd.close()


RANK = """
import json, os, sys
from castor_runtime.trainer import meeting
import torch
import torch.distributed as dist

def listening():
    own = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
           if os.path.islink(f"/proc/self/fd/{fd}")}
    found = []
    for table in ("tcp", "tcp6"):
        for line in open(f"/proc/net/{table}").read().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and f"socket:[{columns[9]}]" in own:
                found.append(columns[1])
    return found

met = []
for place in sys.argv[1:]:
    os.environ.update(meeting.environment(place))
    meeting.install()
    dist.init_process_group("gloo")
    one = torch.ones(1)
    dist.all_reduce(one)
    met.append({"sum": float(one), "listening": listening()})
    dist.barrier()
    dist.destroy_process_group()
print(json.dumps(met), flush=True)
"""


def meet(*places: str) -> list[list[dict[str, Any]]]:
    """Have two ranks meet at each of the places; return for each place what each rank saw."""
    ranks = []
    for rank in range(2):
        environment = dict(os.environ) | {"RANK": str(rank), "WORLD_SIZE": "2"}
        environment |= rendezvous.interfaces("127.0.0.1") | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", RANK, *places]
        ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    try:
        told = [json.loads(rank.communicate(timeout=DEADLINE_S)[0]) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    return [list(place) for place in zip(*told, strict=True)]


def test_trainers_of_one_machine_meet_in_a_file_and_others_at_the_address_given_alone(
    open_folder: Path,
) -> None:
    place = rendezvous.choose("127.0.0.1", open_folder, 3)
    # A loopback address stands for a machine's own: what counts is which one is bound.
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", 0))
        port = probe.getsockname()[1]
    in_file, at_address = meet(place, f"127.0.0.2:{port}")
    assert [rank["sum"] for rank in (*in_file, *at_address)] == [2.0] * 4
    for rank in in_file:  # gloo's own at the loopback address, and no store of torch's
        assert {where.partition(":")[0] for where in rank["listening"]} <= {"0100007F"}
        number = int(meeting.environment(place)["MASTER_PORT"])
        assert not any(where.endswith(f":{number:04X}") for where in rank["listening"])
    assert f"0200007F:{port:04X}" in at_address[0]["listening"]
    for rank in at_address:
        assert {where.partition(":")[0] for where in rank["listening"]} <= {"0200007F", "0100007F"}
    folder = Path(place.partition("?file=")[2]).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    listed = as_nobody("import os, sys\nprint(os.access(sys.argv[1], os.R_OK))", str(folder))
    assert listed.strip() == "False"
    # What an earlier generation left is gone before the next one meets.
    again = Path(rendezvous.choose("127.0.0.1", open_folder, 4).partition("?file=")[2])
    assert list(again.parent.iterdir()) == []


def test_gloo_and_nccl_are_told_the_interface_of_the_agents_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in rendezvous.INTERFACE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    by_address = {}
    for interface, ones in psutil.net_if_addrs().items():
        for one in ones:
            if one.family == socket.AF_INET:
                by_address[one.address] = interface
    assert "127.0.0.1" in by_address
    for address, interface in by_address.items():
        told = rendezvous.interfaces(address)
        assert told == dict.fromkeys(rendezvous.INTERFACE_VARIABLES, interface)
        assert by_address[rendezvous.address_of(interface)] == interface
    assert rendezvous.interfaces("127.0.0.2") == rendezvous.interfaces("127.0.0.1")
    assert rendezvous.interfaces("no-such-host.invalid") == {}
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    assert "NCCL_SOCKET_IFNAME" not in rendezvous.interfaces("127.0.0.1")
    with pytest.raises(ValueError, match=r"there is no interface 'eth99': use .*lo"):
        rendezvous.address_of("eth99")


def test_the_peers_server_refuses_another_user(tmp_path: Path, needs: Callable[..., None]) -> None:
    needs(root=True)
    asked: list[int] = []

    class Source:
        def open(self, rank: int, iteration: int) -> object:
            asked.extend((rank, iteration))
            raise AssertionError("nobody may ask")

    attempt = """
        import os, socket, sys
        s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=60)
        s.sendall(b"CASTOR" + os.urandom(90))
        try:
            print(len(s.recv(4096)))
        except OSError as error:
            print(0, type(error).__name__)
    """

    async def story() -> str:
        server = PeerServer(
            "127.0.0.1",
            credentials=JobSecret(b"s" * 32),
            run="0" * 16,
            source=Source(),  # type: ignore[arg-type]
            status=lambda: asked.append(-1) or {},
        )
        async with server:
            port = server.address.rpartition(":")[2]
            return await asyncio.to_thread(as_nobody, attempt, port)

    assert asyncio.run(story()).split()[0] == "0"
    assert asked == []


# ---- which etcd ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "fault"),
    [
        ("3.4.23", False),
        ("3.5.0", True),
        ("3.5.1", True),
        ("3.5.2", True),
        ("3.5.3", False),
        ("3.5.21", False),
        ("3.6.0-rc.1", False),
        ("of nobody's knowledge", False),
    ],
)
def test_an_etcd_that_loses_data_is_named(version: str, fault: bool) -> None:
    assert bool(fault_of(version)) == fault
    if fault:
        assert "13766" in fault_of(version)
        assert "3.5.3" in fault_of(version)


@pytest.mark.parametrize(
    ("says", "taken"),
    [
        ("echo etcd Version: 3.5.3", True),
        ("echo etcd Version: 3.10.0", True),
        ("echo etcd Version: 3.5.2", False),
        ("echo etcd Version: 3.4.23", False),
        ("echo nothing of the kind", False),
        ("exit 1", False),
    ],
)
def test_a_newer_etcd_on_the_path_is_preferred(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, taken: bool
) -> None:
    own = etcd_program()
    program = tmp_path / "etcd"
    program.write_text(f"#!/bin/sh\n{says}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert etcd_program() == (program if taken else own)


def test_the_version_is_read_from_the_program_and_from_the_running_store(tmp_path: Path) -> None:
    etcd = EmbeddedEtcd(tmp_path / "etcd")
    etcd.start()
    try:

        async def ask() -> dict[str, object]:
            store = open_store(etcd.url)
            try:
                return await store.state()
            finally:
                await store.close()

        state = asyncio.run(ask())
        assert parse_version(str(state["version"])) == version_of(etcd_program())
        assert state["alarms"] == []
    finally:
        etcd.close()


def test_the_status_says_which_store_it_is_and_what_is_wrong_with_it() -> None:
    spec = JobSpec("j", 2, 1, "group", ((0, 1), (1, 0)), "train.py")
    view = JobView("j")
    view.apply(KeyValue(spec_key("j"), spec.to_json(), 2, 2, None))
    view.apply(KeyValue(agents_prefix("j") + "node-9", '{"colour":2}', 3, 3, None))
    document = status_document(view, None, {"version": "3.5.1", "alarms": ["NOSPACE"]})
    troubles = "\n".join(document["store"]["troubles"])
    assert document["store"]["version"] == "3.5.1"
    for said in ("node-9 is set aside", "13766", "NOSPACE"):
        assert said in troubles
    assert status_document(view, None, {"version": "3.5.9", "alarms": []})["store"] == {
        "version": "3.5.9",
        "troubles": document["store"]["troubles"][:1],
    }
