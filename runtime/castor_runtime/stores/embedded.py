"""`EmbeddedEtcd`: an etcd for a job on one machine, which nobody else on it can reach.

etcd asks nobody who he is. So it listens at a socket in a folder that only its owner may enter; no
other user of the machine can read the job there, or write another one. On an emulated cluster,
whose hosts must reach it through their network, it takes only who has a certificate of this run.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from castor_runtime.store_address import UNIX
from castor_runtime.stores.certificates import Certificates
from castor_runtime.stores.versions import EtcdStartError, etcd_program

HOST = "127.0.0.1"
"""Where agents of one machine listen."""

_MAX_PATH = 100
"""A socket's path may have 107 bytes."""

_START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 5.0
_PORTS_TRIED = 5
_FIRST_PORT = 20_000
_SOCKET = "etcd:0"
_PEER_SOCKET = "peer:0"

_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
parent, program = int(sys.argv[1]), sys.argv[2:]
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() == parent:  # else it died before we could ask to die with it
    os.execv(program[0], program)
"""
"""A program of its own: a `preexec_fn` may hang in a process that has threads, and gRPC has."""


class EmbeddedEtcd:
    """An etcd of one member on this machine, in a process that dies with the thread that starts it.

    Its data survive `kill` (and kill -9 from outside): `restart` goes on with them on the same
    port. It runs with --unsafe-no-fsync: what it has written is in the kernel's page cache, which
    outlives the process but not the machine; and when this machine dies, the whole emulated cluster
    dies with it. In return a commit does not wait for the disk that checkpoints are written to.

    Call `start` and `restart` from a thread that lives as long as etcd shall: the kernel's "parent
    death signal" means that thread.

    Args:
        data_dir: folder of its own; made if missing; holds `data/` and `etcd.log`.
        port: client port, where there is a host; 0: a free one, chosen at the first start.
        host: address to listen at, with certificates; on an emulated cluster its gateway's. "": at
            a socket in a folder of the owner's.
    """

    def __init__(self, data_dir: Path, port: int = 0, host: str = "") -> None:
        self._data_dir = data_dir
        self._port = port
        self._host = host
        self._socket_dir: Path | None = None
        self._certificates = Certificates(data_dir.absolute() / "certificates") if host else None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> tuple[str, int | str]:
        """Host and client port, 0 until the first start if none was given; or "unix" and a path."""
        if self._host:
            return self._host, self._port
        return UNIX, str(self._socket)

    @property
    def url(self) -> str:
        """What `open_store` takes."""
        if self._certificates is not None:
            return f"etcds://{self._host}:{self._port}?certificates={self._certificates.folder}"
        return f"etcd+unix://{self._socket}"

    @property
    def _socket(self) -> Path:
        """Where it listens; the folder is made, and is its owner's alone."""
        if self._socket_dir is None:
            own = self._data_dir.absolute() / "socket"
            if len(str(own / _SOCKET).encode()) <= _MAX_PATH:
                own.mkdir(mode=0o700, parents=True, exist_ok=True)
                own.chmod(0o700)
                self._socket_dir = own
            else:
                self._socket_dir = Path(tempfile.mkdtemp(prefix="castor-etcd-"))
        return self._socket_dir / _SOCKET

    @property
    def log_path(self) -> Path:
        """File with what etcd says; appended to at each start."""
        return self._data_dir / "etcd.log"

    @property
    def pid(self) -> int | None:
        """Its process, or None when it is not running."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self, timeout_s: float = _START_TIMEOUT_S) -> None:
        """Start etcd and wait until it answers; does nothing if it runs.

        Raises:
            EtcdStartError: no binary, no free port, or it did not become healthy in time.
        """
        if self.pid is not None:
            return
        self._data_dir.mkdir(parents=True, exist_ok=True)
        if not self._host:
            self._socket.unlink(missing_ok=True)
            self._start(0, timeout_s)
            return
        if self._certificates is not None:
            self._certificates.make(self._host)
        ports = [self._port] if self._port else list(_free_ports(self._host, _PORTS_TRIED))
        for attempt, port in enumerate(ports, start=1):
            try:
                self._start(port, timeout_s)
            except EtcdStartError as error:
                # Somebody else may have taken the port since it was seen free.
                if attempt == len(ports) or "address already in use" not in str(error):
                    raise
            else:
                self._port = port
                return
        raise EtcdStartError(f"no free port on {self._host} from {_FIRST_PORT} on; name one")

    def restart(self, timeout_s: float = _START_TIMEOUT_S) -> None:
        """Stop it if it runs, and start it again on the same port with the data that it has.

        Raises:
            EtcdStartError: as `start`.
        """
        self.stop()
        self.start(timeout_s)

    def stop(self) -> None:
        """End etcd in order (SIGTERM), by force after 5 s; does nothing if it does not run."""
        self._end(signal.SIGTERM)

    def close(self) -> None:
        """End it for good: `stop`, and the folder of its socket goes, if it has one elsewhere."""
        self.stop()
        if self._socket_dir is not None and self._socket_dir.parent != self._data_dir.absolute():
            shutil.rmtree(self._socket_dir, ignore_errors=True)

    def kill(self) -> None:
        """End etcd as a crash would (SIGKILL), and wait until it is gone."""
        self._end(signal.SIGKILL)

    def wipe(self) -> None:
        """Remove its data, as a disk that was replaced has none; end it first."""
        shutil.rmtree(self._data_dir / "data", ignore_errors=True)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        process.send_signal(signal.SIGCONT)  # stopped, it would not take SIGTERM
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _start(self, port: int, timeout_s: float) -> None:
        begun = self.log_path.stat().st_size if self.log_path.exists() else 0
        prefix = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - no shell, and our own arguments
                [*prefix, str(etcd_program()), *self._arguments(port)],
                cwd=self._socket.parent if not self._host else None,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C means the launcher, which ends etcd last
            )
        deadline_s = time.monotonic() + timeout_s
        while not self._answers(self._process.pid, port):
            exited = self._process.poll() is not None
            if exited or time.monotonic() > deadline_s:
                self.kill()
                how = "etcd exited" if exited else f"etcd did not answer within {timeout_s:g} s"
                tail = self.log_path.read_bytes()[begun:][-2000:].decode(errors="replace")
                where = f"port {port}" if self._host else str(self._socket)
                raise EtcdStartError(f"{how} ({where}); the end of {self.log_path}:\n{tail}")
            time.sleep(0.01)

    def _answers(self, pid: int, port: int) -> bool:
        if not self._host:
            return _healthy(_UnixConnection(self._socket))
        if not _listens(pid, port):
            return False
        assert self._certificates is not None
        context = self._certificates.client_context()
        return _healthy(http.client.HTTPSConnection(self._host, port, timeout=1.0, context=context))

    def _arguments(self, port: int) -> Iterator[str]:
        # etcd takes a socket as unix://NAME:NUMBER alone, a file of that name where it runs.
        own = f"unix://{_SOCKET}" if not self._host else f"https://{self._host}:{port}"
        # It has no peers, but insists on a socket for them.
        peers = f"unix://{_PEER_SOCKET}" if not self._host else f"https://{HOST}:0"
        options = {
            "name": "castor",
            "data-dir": str(self._data_dir.absolute() / "data"),
            "listen-client-urls": own,
            "advertise-client-urls": own,
            "listen-peer-urls": peers,
            "initial-advertise-peer-urls": peers,
            "initial-cluster": f"castor={peers}",
            "enable-grpc-gateway": "false",
            # These two make the shortest lease 1 s instead of 2, and a restart quicker.
            "heartbeat-interval": "50",
            "election-timeout": "500",
            "auto-compaction-mode": "revision",
            "auto-compaction-retention": "10000",
            "log-level": "warn",
        }
        if self._certificates is not None:
            options |= self._certificates.etcd_options()
        yield "--unsafe-no-fsync"
        for name in sorted(options):
            yield f"--{name}={options[name]}"


def _free_ports(host: str, count: int) -> Iterator[int]:
    """Yield free ports below those that the kernel gives to outgoing connections.

    While etcd is down its clients try to connect. Were its port one of those, a client could be
    given it as its own, connect to itself, and keep etcd from coming back.
    """
    ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range")
    end = int(ephemeral.read_text().split()[0]) if ephemeral.exists() else 32_768
    span = max(end - _FIRST_PORT, 1)
    offset = os.getpid() * 61 % span  # jobs that start at once begin at places of their own
    for step in range(span):
        port = _FIRST_PORT + (offset + step) % span
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
        yield port
        count -= 1
        if not count:
            return


def _listens(pid: int, port: int) -> bool:
    """Whether it is this process that listens there: another job's etcd would answer as well."""
    inodes = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        columns = line.split()
        if columns[3] == "0A" and int(columns[1].partition(":")[2], 16) == port:
            inodes.add(f"socket:[{columns[9]}]")
    with contextlib.suppress(OSError):  # it has exited
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                if str(descriptor.readlink()) in inodes:
                    return True
    return False


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=1.0)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _healthy(connection: http.client.HTTPConnection) -> bool:
    try:
        # One that is full can be read, and given room again: better than none.
        connection.request("GET", "/health?exclude=NOSPACE")
        return b'"true"' in connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
