"""One run on an emulated cluster: which agent is on which host, and what happens to its link."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from castor_configs.errors import InputError
from castor_lab.emulated_cluster import namespaces
from castor_lab.emulated_cluster.iproute import KernelRefusedError
from castor_lab.emulated_cluster.layout import Cluster, Host
from castor_lab.emulated_cluster.lifecycle import find
from castor_lab.emulated_cluster.links import (
    cut,
    link_state,
    repair,
    restore,
    set_bandwidth,
)
from castor_lab.emulated_cluster.namespaces import kill_all_in, processes_in
from castor_lab.emulated_cluster.storage_host import StorageHost
from castor_lab.emulated_cluster.storage_traffic import storage_environment
from castor_runtime.launcher.site import Place


class Hosts:
    """Which agent is on which host; pure.

    Agent "node-2" is on host "node-2". Any other gets the first host that nobody has: a spare,
    then a node that the job does not use, then one whose machine was lost, as a cloud gives a
    machine out again.

    Args:
        cluster: its hosts.
        machines: how many of them train from the start.
    """

    def __init__(self, cluster: Cluster, machines: int) -> None:
        self._by_name = {host.name: host for host in cluster.hosts}
        own = [f"node-{machine}" for machine in range(machines)]
        missing = [name for name in own if name not in self._by_name]
        if missing:
            nodes = sum(name.startswith("node-") for name in self._by_name)
            raise InputError(
                f"cluster {cluster.name} has {nodes} nodes, and the job wants {machines}: "
                f"castor cluster up --nodes {machines}",
                key="--nodes",
            )
        others = [host.name for host in cluster.hosts if host.name not in own]
        self._free = sorted(others, key=lambda name: not name.startswith("spare-"))
        self._of: dict[str, Host] = {}
        self._own = frozenset(own)
        self._cluster = cluster.name

    def place(self, agent: str) -> Host:
        """Return the host of an agent: the one that it has, or one that nobody has.

        Raises:
            InputError: all are taken.
        """
        if agent not in self._of:
            if agent in self._own:
                self._of[agent] = self._by_name[agent]
            elif self._free:
                self._of[agent] = self._by_name[self._free.pop(0)]
            else:
                raise InputError(
                    f"cluster {self._cluster} has no host left for {agent}: bring it up with more "
                    "--spares"
                )
        return self._of[agent]

    def of(self, agent: str) -> Host | None:
        """Return the host that an agent has, None if it has none (any more)."""
        return self._of.get(agent)

    def release(self, agent: str) -> None:
        """Let the host of an agent that is gone for good be given out again."""
        host = self._of.pop(agent, None)
        if host is not None:
            self._free.append(host.name)


def place_on(host: Host, storage: str) -> Place:
    """Return the place of an agent on a host; `storage` is the storage host's HOST:PORT."""
    environment = dict(storage_environment(storage))
    enter = f"{namespaces.__name__}:{namespaces.enter.__name__}"
    return Place(environment, enter, host.namespace)


class Network:
    """A run's use of an emulated cluster: the run's `Site`; `close` leaves it as it was built.

    Args:
        name: of the cluster.

    Raises:
        InputError: there is no such cluster.
    """

    def __init__(self, name: str) -> None:
        try:
            self.cluster = find(name)
        except InputError as error:
            raise InputError(error.message, key="--cluster") from error
        # Made in `open`.
        self._hosts: Hosts
        self._storage: StorageHost
        self._rates_bps: tuple[int, int] | None = None

    @property
    def gateway(self) -> str:
        """Where hosts reach this machine's own processes: nowhere else."""
        return self.cluster.gateway

    def open(self, *, machines: int, standbys: int, log: Path) -> None:
        """Begin a run.

        Args:
            machines: how many train.
            standbys: how many wait from the start.
            log: file for what the storage host says.

        Raises:
            InputError: the cluster is too small, or another run is on it.
        """
        name, count = self.cluster.name, len(self.cluster.hosts)
        if machines + standbys > count:
            raise InputError(
                f"cluster {name} has {count} hosts, too few for {machines} machines and "
                f"{standbys} standbys",
                key="--cluster",
            )
        self._hosts = Hosts(self.cluster, machines)
        everywhere = [*self.cluster.hosts, self.cluster.storage]
        if busy := processes_in(*(host.namespace for host in everywhere)):
            raise InputError(
                f"processes run on cluster {name} ({', '.join(map(str, sorted(busy)[:5]))}): one "
                "run at a time",
                key="--cluster",
            )
        for host in everywhere:
            repair(host)
        self._rates_bps = (
            link_state(self.cluster.hosts[0]).built_bps,
            link_state(self.cluster.storage).built_bps,
        )
        self._storage = StorageHost(self.cluster.storage, log)

    def to_json(self) -> dict[str, Any] | None:
        """Return its name and the bandwidths that its links were built with; None until open."""
        if self._rates_bps is None:
            return None
        bandwidth_bps, storage_bandwidth_bps = self._rates_bps
        return {
            "name": self.cluster.name,
            "bandwidth_bps": bandwidth_bps,
            "storage_bandwidth_bps": storage_bandwidth_bps,
        }

    def address(self, agent: str) -> str:
        """Return the address of an agent's host.

        Raises:
            InputError: no host is left for it.
        """
        return self._hosts.place(agent).address

    def place(self, agent: str) -> Place:
        """Return where an agent runs.

        Raises:
            InputError: no host is left for it.
        """
        return place_on(self._hosts.place(agent), self._storage.address)

    def left(self, agent: str) -> None:
        """Nothing to do: it keeps its host."""

    def cut(self, agent: str) -> None:
        """Cut the link of an agent's host, both directions."""
        if (host := self._hosts.of(agent)) is not None:
            cut(host)

    def restore(self, agent: str) -> None:
        """Restore a link that was cut."""
        if (host := self._hosts.of(agent)) is not None:
            restore(host)

    def slow(self, agent: str, bandwidth_bps: int) -> None:
        """Give the link of an agent's host another bandwidth, each way."""
        if (host := self._hosts.of(agent)) is not None:
            set_bandwidth(host, bandwidth_bps)

    def clear(self, agent: str) -> None:
        """Kill everything on an agent's host: the machine is gone.

        The host can be given out again, with its link as it was built: it is another machine.
        """
        if (host := self._hosts.of(agent)) is not None:
            kill_all_in(host.namespace)
            repair(host)
            self._hosts.release(agent)

    def close(self) -> None:
        """End the storage host and bring every link back to how it was built."""
        self._storage.close()
        for host in (*self.cluster.hosts, self.cluster.storage):
            with contextlib.suppress(KernelRefusedError):  # somebody took the cluster down
                repair(host)
