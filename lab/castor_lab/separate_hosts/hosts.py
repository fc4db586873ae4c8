"""Separate hosts on a switch: started, killed, unplugged, and what runs and listens on them."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, ClassVar, Final, Self

from castor_configs.errors import InputError
from castor_lab.emulated_cluster.iproute import KernelRefusedError, ip, ip_json, require
from castor_lab.emulated_cluster.namespaces import kill_all_in, processes_in
from castor_lab.separate_hosts.disk import SHARED_MEMORY, environment, first_process, installed
from castor_runtime.processes import is_alive

INTERFACE: Final = "eth0"
"""What every host calls its link."""
NETWORK: Final = "10.77.0"
"""Of a switch that nothing else is on, so that it may be anybody's."""

_APART: Final = "apart"
_SWITCH: Final = "switch"
_PROGRAMS: Final = ("unshare", "nsenter", "mount", "hostname", "ss")
_UP_S: Final = 10.0
_END_S: Final = 5.0


class SeparateHost:
    """One host; it is down until `start`.

    Attributes:
        name: its own; nobody else can resolve it.
        address: its IPv4 address on the switch.

    Args:
        name: of the host.
        address: of it.
        cluster: what the names of its namespaces begin with.
    """

    def __init__(self, name: str, address: str, cluster: str) -> None:
        self.name = name
        self.address = address
        self.namespace = f"{cluster}-{name}"
        self._switch = f"{cluster}-{_SWITCH}"
        self._first: subprocess.Popen[bytes] | None = None
        self._begun: list[subprocess.Popen[bytes]] = []

    def lay_link(self) -> None:
        """Make its network: a cable from `INTERFACE` to the switch's port of its name."""
        ip("netns", "add", self.namespace)
        peer = ("type", "veth", "peer", "name", self.name, "netns", self._switch)
        ip("link", "add", INTERFACE, "netns", self.namespace, *peer)
        ip("address", "add", f"{self.address}/24", "dev", INTERFACE, namespace=self.namespace)
        for link in ("lo", INTERFACE):
            ip("link", "set", link, "up", namespace=self.namespace)
        ip("link", "set", "dev", self.name, "master", _SWITCH, "up", namespace=self._switch)

    def start(self) -> None:
        """Boot it, with an empty disk.

        Raises:
            KernelRefusedError: its first process could not make its mounts.
        """
        namespaces = ("--mount", "--pid", "--ipc", "--uts", "--fork", "--mount-proc")
        with tempfile.TemporaryFile() as said:
            self._first = subprocess.Popen(  # noqa: S603 - a script of ours
                [
                    *("ip", "netns", "exec", self.namespace, "unshare", *namespaces),
                    *("--kill-child", "bash", "-c", first_process(self.name, installed())),
                ],
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )
            give_up_s = time.monotonic() + _UP_S
            while not (self._pid() and self.path("/run/up").exists()):
                if self._first.poll() is not None or time.monotonic() > give_up_s:
                    self._first.kill()
                    said.seek(0)
                    why = said.read().decode(errors="replace").strip()
                    raise KernelRefusedError(f"host {self.name} did not start: {why}")
                time.sleep(0.005)

    def _pid(self) -> int:
        """Return its first process as this computer numbers it; 0 if there is none."""
        assert self._first is not None, f"host {self.name} is down"
        pid = self._first.pid
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
            return int(children[0]) if children else 0
        return 0

    def path(self, path: str) -> Path:
        """Return one of its files as this computer reaches it."""
        return Path(f"/proc/{self._pid()}/root{path}")

    def command(self, *arguments: str) -> list[str]:
        """Return the command that runs one on this host, in its home."""
        inside = ("--mount", "--uts", "--ipc", "--net", "--pid")
        in_home = ("sh", "-c", 'cd && exec "$@"', "sh")
        return ["nsenter", "--target", str(self._pid()), *inside, "--", *in_home, *arguments]

    def run(
        self, *arguments: str, given: str = "", timeout_s: float = 60.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there to its end.

        Raises:
            subprocess.CalledProcessError: it failed, and `check`.
        """
        return subprocess.run(  # noqa: S603 - the caller's own words
            self.command(*arguments),
            env=environment(),
            input=given,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=check,
        )

    def begin(self, *arguments: str, log: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a command there; what it says is appended to `log`, a file of this computer."""
        with _appending(log) as out:
            process = subprocess.Popen(  # noqa: S603 - the caller's own words
                self.command(*arguments),
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._begun.append(process)
        return process

    def take_in(self) -> None:
        """Wait for what was begun here, all of which has ended or been killed."""
        for process in (*self._begun, *([self._first] if self._first else [])):
            process.wait(_END_S)
        self._begun.clear()

    def processes(self) -> dict[int, str]:
        """Return what runs there but for its first process: number here -> command line."""
        first = self._pid()
        found = {}
        for pid in processes_in(self.namespace):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
                own = pid == first or pid == self._outer() or words[0] == b"sleep"
                if not (own or (int(parent) == first and not words[0])):
                    found[pid] = b" ".join(words).decode(errors="replace").strip()
        return found

    def _outer(self) -> int:
        return self._first.pid if self._first is not None else 0

    def segments(self) -> list[str]:
        """Return what lies in its shared memory."""
        return sorted(one.name for one in self.path(SHARED_MEMORY).iterdir())

    def listens(self) -> set[tuple[str, int]]:
        """Return the addresses and TCP ports at which something listens, as `ss -ltn` has them."""
        lines = self.run("ss", "-Hltn").stdout.splitlines()
        ends = (line.split()[3].rpartition(":") for line in lines)
        return {(host, int(port)) for host, _, port in ends}

    def kill(self) -> None:
        """Kill -9 its first process, and with it everything there; its cable stays plugged."""
        assert self._first is not None, f"host {self.name} is down"
        os.kill(self._pid() or self._first.pid, signal.SIGKILL)
        self._first.wait(_END_S)

    def unplug(self) -> None:
        """Pull its cable at the switch: what is on its way is lost, and nobody is told."""
        ip("link", "set", "dev", self.name, "down", namespace=self._switch)

    def plug(self) -> None:
        """Plug its cable in again."""
        ip("link", "set", "dev", self.name, "up", namespace=self._switch)


class SeparateHosts:
    """Hosts on one switch, up for the time of a `with`; afterwards nothing of them is left.

    Several may be up at once, each on its own switch.

    Args:
        names: of the hosts.

    Raises:
        InputError: not root, or a program is missing.
    """

    _made: ClassVar = itertools.count()

    def __init__(self, names: Sequence[str]) -> None:
        require()
        if missing := [one for one in _PROGRAMS if shutil.which(one) is None]:
            raise InputError(f"the program {' and '.join(missing)} is not installed")
        self._cluster = f"{_APART}-{os.getpid()}-{next(self._made)}"
        self._switch = f"{self._cluster}-{_SWITCH}"
        self._hosts = {
            one: SeparateHost(one, f"{NETWORK}.{10 + number}", self._cluster)
            for number, one in enumerate(names)
        }

    def __getitem__(self, name: str) -> SeparateHost:
        """Return the host of that name."""
        return self._hosts[name]

    def __iter__(self) -> Iterator[SeparateHost]:
        """Yield every host."""
        return iter(self._hosts.values())

    def __enter__(self) -> Self:
        """Bring all of them up; what a crash left of others goes."""
        _remove(_orphaned())
        try:
            ip("netns", "add", self._switch)
            ip("link", "add", _SWITCH, "type", "bridge", namespace=self._switch)
            ip("link", "set", _SWITCH, "up", namespace=self._switch)
            for host in self:
                host.lay_link()
                host.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        """Take all away, with whatever runs on them."""
        self.close()

    def close(self) -> None:
        """Take all away, with whatever runs on them."""
        _remove([host.namespace for host in self] + [self._switch])
        for host in self:
            host.take_in()


def _orphaned() -> list[str]:
    """Return the namespaces of hosts whose maker is dead."""
    made = re.compile(rf"{_APART}-(\d+)-")
    names = (str(one["name"]) for one in ip_json("netns", "list"))
    return [one for one in names if (of := made.match(one)) and not is_alive(int(of[1]))]


def _remove(namespaces: Sequence[str]) -> None:
    kill_all_in(*namespaces)
    for namespace in namespaces:
        with contextlib.suppress(KernelRefusedError):  # it was never made, or another took it away
            ip("netns", "delete", namespace)


@contextlib.contextmanager
def _appending(log: Path | None) -> Iterator[IO[bytes] | int]:
    if log is None:
        yield subprocess.DEVNULL
        return
    with log.open("ab") as out:
        yield out
