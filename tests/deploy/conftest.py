"""Hosts that share nothing, with a real etcd and real ssh, for whatever brings a job to them."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from castor_lab.separate_hosts.hosts import SeparateHost, SeparateHosts
from castor_records.event_log import merge
from castor_records.events.event import Entry, Event, of_kind
from castor_records.events.training import IterationEnded
from castor_records.recoveries import last_iteration
from castor_runtime.launcher.final_state import final_state
from castor_runtime.stores.embedded import etcd_program

DEADLINE_S = 120.0
SECRET = "/mnt/secret"
STORE = "store"


class Deployment:
    """Hosts, of which one has an etcd; all have a secret, and the kernel gives ports of a range."""

    def __init__(self, hosts: SeparateHosts, nodes: Sequence[str]) -> None:
        self.hosts = hosts
        self.nodes = nodes
        self.secret = os.urandom(32)
        self.secret_file = SECRET
        self.store = f"etcd://{hosts[STORE].address}:2379"
        for host in hosts:
            self.furnish(host)
        self.start_etcd()

    def wait_until(self, holds: Callable[[], bool], why: Callable[[], object] = str) -> None:
        give_up_s = time.monotonic() + DEADLINE_S
        while not holds():
            assert time.monotonic() < give_up_s, why()
            time.sleep(0.05)

    def furnish(self, host: SeparateHost) -> None:
        host.path(SECRET).write_bytes(self.secret)
        host.path(SECRET).chmod(0o600)

    def start_etcd(self) -> None:
        host = self.hosts[STORE]
        url = f"http://{host.address}:2379"
        own = "http://127.0.0.1:2380"
        self._etcd = host.begin(
            *(str(etcd_program()), "--data-dir", "/mnt/etcd", "--log-level", "error"),
            *("--listen-client-urls", url, "--advertise-client-urls", url),
            *("--listen-peer-urls", own, "--initial-advertise-peer-urls", own),
            *("--initial-cluster", f"default={own}"),
        )
        self.wait_until(lambda: (host.address, 2379) in host.listens())

    def restart_etcd(self) -> None:
        host = self.hosts[STORE]
        host.run("pkill", "-KILL", "etcd")
        self._etcd.wait(DEADLINE_S)
        self.start_etcd()

    def logs(self, name: str) -> Path:
        return self.hosts[name].path("/root/.local/state/castor")

    def is_spare(self, name: str) -> bool:
        """Whether a node's agent is alive without a place among those that train."""
        if not list(self.logs(name).glob("*/*/agent.json")):
            return False
        alive = any("castor run" in one for one in self.hosts[name].processes().values())
        return alive and self.machine(name) is None

    def machine(self, name: str) -> int | None:
        """Return the place that a node's agent fills, by what it said last; None for none."""
        for file in self.logs(name).glob("*/*/agent.json"):
            machine: int | None = json.loads(file.read_text())["machine"]
            return machine
        return None

    def events(self) -> list[Entry[Event]]:
        return merge(
            file for name in self.nodes for file in self.logs(name).glob("*/*/events.jsonl")
        )

    def iteration(self) -> int:
        return last_iteration(self.events())

    def redone(self, until_generation: int) -> dict[tuple[int, int], int]:
        """Return how often which rank ended which iteration, of those that it ended again."""
        ended = (one.event for one in of_kind(self.events(), IterationEnded))
        times = Counter(
            (one.rank, one.iteration) for one in ended if one.generation <= until_generation
        )
        return {which: count for which, count in times.items() if count > 1}

    def final(self, ranks: int) -> tuple[int | None, str | None]:
        files = [one for name in self.nodes for one in self.logs(name).glob("*/*/final.json")]
        return final_state([json.loads(file.read_text()) for file in files], ranks)

    def let_in(self, desk: str) -> None:
        """Have every node's sshd let in who sits at the host `desk`."""
        own = self.hosts[desk]
        make_key = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f")
        own.run("mkdir", "-m", "700", "/root/.ssh")
        own.run(*make_key, "/root/.ssh/id_ed25519")
        key = own.path("/root/.ssh/id_ed25519.pub").read_text()
        for name in self.nodes:
            host = self.hosts[name]
            host.run("mkdir", "-m", "700", "/root/.ssh", "/run/sshd")
            host.run(*make_key, "/mnt/host_key")
            host.path("/root/.ssh/authorized_keys").write_text(key)
            options = ("HostKey=/mnt/host_key", f"ListenAddress={host.address}", "PidFile=none")
            options = (*options, "Subsystem=sftp internal-sftp")  # for scp
            words = [word for option in options for word in ("-o", option)]
            host.begin("/usr/sbin/sshd", "-D", "-f", "/dev/null", *words)
            self.wait_until(lambda host=host: (host.address, 22) in host.listens())


@pytest.fixture
def deployment(request: pytest.FixtureRequest, needs: Callable[..., None]) -> Iterator[Deployment]:
    """A store and the nodes that the test's parameter names, and then whatever else it names."""
    needs("ip", "unshare", "nsenter", "mount", "ss", "pkill", "hostname", root=True)
    nodes, others = request.param
    with SeparateHosts([STORE, *nodes, *others]) as hosts:
        yield Deployment(hosts, nodes)
