"""Bringing emulated clusters up and down, and finding those that are there."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network

from castor_configs.errors import InputError
from castor_lab.emulated_cluster.iproute import (
    KernelRefusedError,
    ip,
    ip_json,
    require,
)
from castor_lab.emulated_cluster.layout import (
    DEFAULT_NAME,
    INTERFACE,
    MTU_BYTES,
    STORAGE,
    SWITCH,
    Cluster,
    Host,
    Wanted,
    addresses,
    check_name,
    free_network,
    gateway_link,
    host_order,
    namespace_of,
    split_namespace,
)
from castor_lab.emulated_cluster.links import connect
from castor_lab.emulated_cluster.namespaces import kill_all_in


@dataclass(frozen=True, slots=True)
class Removed:
    """What `down` took away.

    Attributes:
        namespaces: their names.
        links: of this machine itself.
        processes: that ran in the namespaces and were killed.
    """

    namespaces: tuple[str, ...]
    links: tuple[str, ...]
    processes: tuple[int, ...]


def up(wanted: Wanted) -> Cluster:
    """Make a cluster; on any failure nothing of it is left.

    Raises:
        InputError: not root, `ip` or `tc` is missing, there is one of that name, or the kernel
            refuses.
    """
    require()
    with _one_at_a_time():
        name = wanted.name
        if _namespaces(name) or _has_gateway(name):
            raise InputError(
                f"cluster {name} is up, or a crash left some of it: "
                f"castor cluster down --name {name}",
                key="--name",
            )
        try:
            _make(wanted)
        except BaseException:
            _remove(name)
            raise
    return find(name)


def _make(wanted: Wanted) -> None:
    name, switch = wanted.name, namespace_of(wanted.name, SWITCH)
    network = free_network(_networks())
    found = addresses(network, wanted.host_names())
    ip("netns", "add", switch)
    # The bridge stands in a namespace of its own, where no firewall of this machine sees it.
    ip("link", "add", SWITCH, "type", "bridge", namespace=switch)
    ip("link", "set", SWITCH, "addrgenmode", "none", "up", namespace=switch)
    gateway = gateway_link(name)
    ip("link", "add", gateway, "type", "veth", "peer", "gateway", "netns", switch)
    quiet = ("mtu", str(MTU_BYTES), "addrgenmode", "none")
    ip("link", "set", gateway, *quiet)
    ip("link", "set", "gateway", *quiet, "master", SWITCH, "up", namespace=switch)
    ip("address", "add", str(found[""]), "dev", gateway)
    ip("link", "set", gateway, "up")
    for host_name in (*wanted.host_names(), STORAGE):
        host = Host(name, host_name, str(found[host_name].ip))
        ip("netns", "add", host.namespace)
        stored = host_name == STORAGE
        bandwidth_bps = wanted.storage_bandwidth_bps if stored else wanted.bandwidth_bps
        connect(host, network.prefixlen, bandwidth_bps)


def down(name: str) -> Removed:
    """Take everything of a cluster away, whatever state it is in; what runs in it is killed.

    Raises:
        InputError: not root, or `ip` is missing.
        KernelRefusedError: the kernel keeps something.
    """
    require()
    check_name(name)
    with _one_at_a_time():
        return _remove(name)


def _remove(name: str) -> Removed:
    namespaces = _namespaces(name)
    processes = kill_all_in(*namespaces)
    # A namespace's links go with it, and with an end of a pair its other end.
    for namespace in namespaces:
        ip("netns", "delete", namespace)
    links = []
    if _has_gateway(name):
        links.append(gateway_link(name))
        with contextlib.suppress(KernelRefusedError):  # gone meanwhile, with its other end
            ip("link", "delete", gateway_link(name))
    return Removed(tuple(namespaces), tuple(links), tuple(processes))


def names() -> list[str]:
    """Return the clusters that are up, or of which a crash left something, sorted.

    Raises:
        InputError: not root, or `ip` is missing.
    """
    require()
    found = {split[0] for one in _all_namespaces() if (split := split_namespace(one)) is not None}
    for link in ip_json("link", "show", "type", "veth"):
        name = str(link["ifname"]).removeprefix(gateway_link(""))
        if name != link["ifname"] and name.isalnum():
            found.add(name)
    return sorted(found)


def find(name: str) -> Cluster:
    """Return the cluster of that name.

    Raises:
        InputError: there is none, or something of it is missing.
    """
    require()
    check_name(name)
    hosts = sorted(n.removeprefix(namespace_of(name, "")) for n in _namespaces(name))
    if not hosts and not _has_gateway(name):
        known = [one for one in names() if one != name]
        there = f"there are {', '.join(known)}" if known else "there is none"
        raise InputError(f"no emulated cluster {name} ({there}): castor cluster up --name {name}")
    try:
        gateway = _address(gateway_link(name), "")
        found = [
            Host(name, host, str(_address(INTERFACE, namespace_of(name, host)).ip))
            for host in sorted(set(hosts) - {SWITCH}, key=host_order)
        ]
        storage = next(host for host in found if host.name == STORAGE)
    except (KernelRefusedError, StopIteration) as error:
        raise InputError(
            f"the emulated cluster {name} is incomplete: castor cluster down --name {name}"
        ) from error
    trains = tuple(host for host in found if host.name != STORAGE)
    return Cluster(name, str(gateway.ip), trains, storage)


def the_only_one(name: str | None) -> str:
    """Return `name`, or without one the cluster that is up, or the default where none is.

    Raises:
        InputError: several are up.
    """
    if name is not None:
        check_name(name)
        return name
    known = names()
    if len(known) > 1:
        raise InputError(f"there are {', '.join(known)}: say which", key="--name")
    return known[0] if known else DEFAULT_NAME


# ---- what the kernel has -------------------------------------------------------------------------


def _all_namespaces() -> list[str]:
    return sorted(str(one["name"]) for one in ip_json("netns", "list"))


def _namespaces(name: str) -> list[str]:
    found = ((one, split_namespace(one)) for one in _all_namespaces())
    return [one for one, split in found if split is not None and split[0] == name]


def _has_gateway(name: str) -> bool:
    return any(link["ifname"] == gateway_link(name) for link in ip_json("link", "show"))


def _networks() -> list[IPv4Network]:
    """Return the networks that this machine has addresses in or routes to."""
    found = [
        IPv4Interface(f"{one['local']}/{one['prefixlen']}").network
        for link in ip_json("-4", "address", "show")
        for one in link.get("addr_info", ())
    ]
    routes = (str(route["dst"]) for route in ip_json("-4", "route", "show"))
    return found + [IPv4Interface(route).network for route in routes if route[0].isdigit()]


def _address(device: str, namespace: str) -> IPv4Interface:
    shown = ip_json("-4", "address", "show", "dev", device, namespace=namespace)
    for link in shown:
        for one in link.get("addr_info", ()):
            return IPv4Interface(f"{one['local']}/{one['prefixlen']}")
    raise KernelRefusedError(f"{device} has no address")


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Hold off others that make or remove clusters; two would choose the same network."""
    descriptor = os.open("/run", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
