"""The links of hosts: cut, restored, slow, and as they were built.

A link is shaped at both of its ends, each at what it sends: the host's end holds what the host
sends, the switch's port what the host receives. The port's alias keeps the bandwidth that the link
was built with, so that any process can restore it.
"""

from __future__ import annotations

from dataclasses import dataclass

from castor_configs.errors import InputError
from castor_lab.emulated_cluster.iproute import ip, ip_json, tc, tc_json
from castor_lab.emulated_cluster.layout import (
    INTERFACE,
    MTU_BYTES,
    SLOWEST_BPS,
    SWITCH,
    Host,
    namespace_of,
    shape,
)

_ALIAS = "built with {} bit/s"

_TCP = (
    # Every kernel has it. BBR, some systems' default, sends next to nothing for 0.2 s out of
    # every 10.
    "echo reno >tcp_congestion_control",
    # Traffic here comes in bursts after waits, of which each would begin slowly.
    "echo 0 >tcp_slow_start_after_idle",
    # One run must not learn from the losses of another.
    "echo 1 >tcp_no_metrics_save",
)
"""Settings of each host's own TCP."""


@dataclass(frozen=True, slots=True)
class LinkState:
    """A host's link as the kernel has it.

    Attributes:
        up: packets pass.
        send_bps: bandwidth of what the host sends; 0 if it is not shaped.
        receive_bps: of what it receives; 0 if it is not shaped.
        built_bps: what both were when the cluster came up; 0 if nobody wrote it down.
    """

    up: bool
    send_bps: int
    receive_bps: int
    built_bps: int

    @property
    def as_built(self) -> bool:
        """Neither cut nor slowed down."""
        return self.up and self.send_bps == self.receive_bps == self.built_bps


def connect(host: Host, prefix_length: int, bandwidth_bps: int) -> None:
    """Lay a host's link: its namespace and the switch's exist, and nothing of the link yet.

    Raises:
        KernelRefusedError: the kernel did not do it.
    """
    switch = namespace_of(host.cluster, SWITCH)
    here, port = host.namespace, host.name
    ip("link", "add", INTERFACE, "netns", here, "type", "veth", "peer", port, "netns", switch)
    # Without an address of version 6 nobody asks the network for one, or picks it to listen at.
    for name, namespace in ((INTERFACE, here), (port, switch)):
        ip("link", "set", name, "mtu", str(MTU_BYTES), "addrgenmode", "none", namespace=namespace)
    ip("address", "add", f"{host.address}/{prefix_length}", "dev", INTERFACE, namespace=here)
    ip("link", "set", "lo", "up", namespace=here)
    ip("link", "set", INTERFACE, "up", namespace=here)
    for setting in _TCP:
        script = f"cd /proc/sys/net/ipv4 && {setting}"
        ip("netns", "exec", here, "sh", "-c", script)
    alias = _ALIAS.format(bandwidth_bps)
    ip("link", "set", port, "master", SWITCH, "up", "alias", alias, namespace=switch)
    set_bandwidth(host, bandwidth_bps)


def set_bandwidth(host: Host, bandwidth_bps: int) -> None:
    """Shape a host's link to `bandwidth_bps`, each way; what waits in its queues is kept.

    Raises:
        InputError: less than 100 kbit/s.
        KernelRefusedError: the kernel did not do it.
    """
    if bandwidth_bps < SLOWEST_BPS:
        raise InputError(f"a link has 100 kbit/s or more, not {bandwidth_bps} bit/s")
    bucket = shape(bandwidth_bps)
    for device, namespace in _ends(host):
        tc(
            *("qdisc", "replace", "dev", device, "root", "tbf"),
            *("rate", f"{bucket.rate_bps}bit"),
            *("burst", f"{bucket.burst_bytes}b"),
            *("limit", f"{bucket.queue_bytes}b"),
            namespace=namespace,
        )


def cut(host: Host) -> None:
    """Take a host off the network, both directions, as a pulled cable does: packets are lost.

    Raises:
        KernelRefusedError: the kernel did not do it.
    """
    ip("link", "set", host.name, "down", namespace=namespace_of(host.cluster, SWITCH))


def restore(host: Host) -> None:
    """Put a host that was `cut` back on the network.

    Raises:
        KernelRefusedError: the kernel did not do it.
    """
    ip("link", "set", host.name, "up", namespace=namespace_of(host.cluster, SWITCH))


def repair(host: Host) -> bool:
    """Bring a host's link back to how it was built; return whether it was otherwise.

    Raises:
        KernelRefusedError: the kernel did not do it.
    """
    state = link_state(host)
    if state.as_built:
        return False
    if state.built_bps:
        set_bandwidth(host, state.built_bps)
    restore(host)
    return True


def link_state(host: Host) -> LinkState:
    """Return the state of a host's link.

    Raises:
        KernelRefusedError: the host or its link is gone.
    """
    switch = namespace_of(host.cluster, SWITCH)
    (port,) = ip_json("link", "show", "dev", host.name, namespace=switch)
    send_bps, receive_bps = (_rate_bps(device, namespace) for device, namespace in _ends(host))
    written = [word for word in str(port.get("ifalias", "")).split() if word.isdigit()]
    return LinkState(
        up="UP" in port["flags"],
        send_bps=send_bps,
        receive_bps=receive_bps,
        built_bps=int(written[0]) if written else 0,
    )


def _ends(host: Host) -> tuple[tuple[str, str], tuple[str, str]]:
    """Return the devices that send: the host's own, and the switch's port to it."""
    switch = namespace_of(host.cluster, SWITCH)
    return (INTERFACE, host.namespace), (host.name, switch)


def _rate_bps(device: str, namespace: str) -> int:
    for one in tc_json("qdisc", "show", "dev", device, namespace=namespace):
        if one["kind"] == "tbf":
            return int(one["options"]["rate"]) * 8  # tc prints bytes a second
    return 0
