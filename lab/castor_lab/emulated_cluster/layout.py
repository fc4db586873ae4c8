"""What an emulated cluster consists of, and what its parts are called; pure.

Everything of cluster NAME can be found by its names alone, so that nothing has to be remembered in
a file that a crash would leave wrong:

    namespace castor-NAME-HOST      node-0..., spare-0..., storage: each with one link, eth0
    namespace castor-NAME-switch    the bridge; its port to a host is called HOST
    link castor-NAME                this machine's own end, the gateway: etcd and the launcher
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from typing import Final

from castor_configs.errors import InputError

PREFIX: Final = "castor-"
INTERFACE: Final = "eth0"
"""What every host calls its link."""
SWITCH: Final = "switch"
STORAGE: Final = "storage"
DEFAULT_NAME: Final = "lab"
STORAGE_PORT: Final = 7070

NETWORKS: Final = IPv4Network("198.18.0.0/15")
"""Set aside for testing networks (RFC 2544), so that nobody's own network lies there."""
HOSTS_MAX: Final = 200

SLOWEST_BPS: Final = 100_000

MTU_BYTES: Final = 9000
"""Of every link, as in a cluster's own network (9001 at AWS). With 1500, six times as many packets
pass the token buckets: at 200 Mbit/s a link that took a quarter of a processor's time."""

_NAME = re.compile(r"[a-z0-9]{1,8}")  # castor-NAME has to fit into a link's 15 characters
_NAMESPACE = re.compile(
    r"castor-(?P<name>[a-z0-9]{1,8})-(?P<host>(?:node|spare)-\d+|storage|switch)"
)


@dataclass(frozen=True, slots=True)
class Host:
    """One emulated host.

    Attributes:
        cluster: name of its cluster.
        name: "node-0", "spare-0" or "storage".
        address: its IPv4 address.
    """

    cluster: str
    name: str
    address: str

    @property
    def namespace(self) -> str:
        """Its network namespace."""
        return namespace_of(self.cluster, self.name)


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that is up.

    Attributes:
        name: of the cluster.
        gateway: address at which its hosts reach this machine's own processes.
        hosts: those that train: nodes first, then spares.
        storage: where persistent checkpoints go.
    """

    name: str
    gateway: str
    hosts: tuple[Host, ...]
    storage: Host


@dataclass(frozen=True, slots=True)
class Wanted:
    """What `castor cluster up` is asked for.

    Attributes:
        name: of the cluster.
        nodes: hosts that train.
        spares: hosts that wait to replace one.
        bandwidth_bps: of every host's link, each way.
        storage_bandwidth_bps: of the storage host's link, each way.

    Raises:
        InputError: a name or a number that cannot be.
    """

    name: str
    nodes: int
    spares: int
    bandwidth_bps: int
    storage_bandwidth_bps: int

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.nodes < 1:
            raise InputError(f"must be 1 or more, not {self.nodes}", key="--nodes")
        if self.spares < 0:
            raise InputError(f"must be 0 or more, not {self.spares}", key="--spares")
        if self.nodes + self.spares > HOSTS_MAX:
            raise InputError(f"at most {HOSTS_MAX} hosts with the spares", key="--nodes")
        for option, bandwidth_bps in (
            ("--bandwidth", self.bandwidth_bps),
            ("--storage-bandwidth", self.storage_bandwidth_bps),
        ):
            if bandwidth_bps < SLOWEST_BPS:
                raise InputError("must be 100 kbit/s or more", key=option)

    def host_names(self) -> list[str]:
        """Return the hosts that train: nodes first, then spares."""
        nodes = [f"node-{index}" for index in range(self.nodes)]
        return nodes + [f"spare-{index}" for index in range(self.spares)]


@dataclass(frozen=True, slots=True)
class Shape:
    """A link's bandwidth as the kernel's token bucket (tc-tbf) is told it.

    Attributes:
        rate_bps: bits a second, headers included.
        burst_bytes: what may pass at once: one millisecond of it, so that the link is even over the
            idle spans that checkpoint traffic is fitted into; two full packets at least.
        queue_bytes: what may wait: 20 ms of it, as deep as a switch's buffers. More would delay
            heartbeats behind bulk traffic, less would have TCP lose what it sends at once.
    """

    rate_bps: int
    burst_bytes: int
    queue_bytes: int


def shape(bandwidth_bps: int) -> Shape:
    """Return the token bucket of a link of `bandwidth_bps`."""
    bytes_per_s = bandwidth_bps // 8
    return Shape(
        rate_bps=bandwidth_bps,
        burst_bytes=max(bytes_per_s // 1000, 2 * MTU_BYTES),
        queue_bytes=max(bytes_per_s // 50, 128 << 10),
    )


def check_name(name: str) -> None:
    """Refuse a name that cannot be part of a link's name.

    Raises:
        InputError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"expected 1 to 8 lower-case letters and digits, such as {DEFAULT_NAME}, not {name!r}",
            key="--name",
        )


def namespace_of(cluster: str, host: str) -> str:
    """Return the namespace of a host, or of the switch."""
    return f"{PREFIX}{cluster}-{host}"


def gateway_link(cluster: str) -> str:
    """Return the name of this machine's own link to the cluster."""
    return f"{PREFIX}{cluster}"


def split_namespace(namespace: str) -> tuple[str, str] | None:
    """Return (cluster, host) of a namespace, None for one that is not an emulated host's."""
    match = _NAMESPACE.fullmatch(namespace)
    return None if match is None else (match["name"], match["host"])


def host_order(name: str) -> tuple[bool, str, int]:
    """Sort key of hosts: nodes by number, then spares, then storage."""
    kind, _, index = name.partition("-")
    return kind == STORAGE, kind, int(index or 0)


def free_network(taken: Iterable[IPv4Network]) -> IPv4Network:
    """Return the first /24 of `NETWORKS` that overlaps none of `taken`.

    Raises:
        InputError: there is none.
    """
    others = [network for network in taken if network.overlaps(NETWORKS)]
    for candidate in NETWORKS.subnets(new_prefix=24):
        if not any(candidate.overlaps(network) for network in others):
            return candidate
    raise InputError(f"all of {NETWORKS} is in use: take an emulated cluster down")


def addresses(network: IPv4Network, hosts: Sequence[str]) -> dict[str, IPv4Interface]:
    """Return every host's address in `network`; the first is the gateway's, under ""."""
    names = ["", *hosts, STORAGE]
    size = network.prefixlen
    return {name: IPv4Interface(f"{network[1 + i]}/{size}") for i, name in enumerate(names)}
