"""Where the trainers of a generation meet, so that nobody else meets them there.

torch's store asks nobody who he is, and lets everybody read and write all of it; by itself it
listens at every address of the machine. So:

1. Trainers that are all on one machine (their agents listen at a loopback address) meet in a file,
   in a folder that only its owner may enter.
2. Others meet at the address that the first machine's agent listens at, and at no other one: keep
   that on a private network. gloo and NCCL are told its interface.

Trainers find the place in their environment (`castor_runtime.trainer.meeting`).
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import socket
from pathlib import Path

import psutil

from castor_runtime.ports import ANY_PORT, Ports
from castor_runtime.trainer.meeting import FILE

INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME")
"""By which gloo, NCCL and torch's RPC are told a network interface."""


def choose(listen: str, folder: Path, generation: int, ports: Ports = ANY_PORT) -> str:
    """Return a place for the trainers' rendezvous, new for each generation.

    Args:
        listen: the address that this machine's agent listens at.
        folder: of the agent.
        generation: of the trainers.
        ports: of which it is one; each generation begins with another one.

    Raises:
        InputError: none of them is free.
    """
    with ports.bind(listen, generation) as probe:
        host, port = probe.getsockname()
    address = f"{host}:{port}"
    if not ipaddress.ip_address(host).is_loopback:
        return address
    private = folder.resolve() / "rendezvous"
    private.mkdir(mode=0o700, parents=True, exist_ok=True)
    private.chmod(0o700)
    for old in private.iterdir():
        old.unlink(missing_ok=True)
    return f"{address}{FILE}{private / f'{generation}-{secrets.token_hex(4)}'}"


def interfaces(listen: str) -> dict[str, str]:
    """Return what has gloo and NCCL talk where this machine's agent does.

    By themselves they look up the machine's name, which may lead anywhere, or nowhere. What the
    user has set stands.

    Args:
        listen: the address, or a name of it, that the agent listens at.
    """
    with contextlib.suppress(OSError):
        if name := interface_of(socket.gethostbyname(listen)):
            return {one: name for one in INTERFACE_VARIABLES if one not in os.environ}
    return {}


def interface_of(address: str) -> str:
    """Return the network interface that has an IPv4 address; "" if none has."""
    wanted = ipaddress.ip_address(address)
    for name, ones in psutil.net_if_addrs().items():
        has = [ipaddress.ip_address(one.address) for one in ones if one.family == socket.AF_INET]
        # All of 127.0.0.0/8 is this machine's, and one address of it stands for them.
        if wanted in has or (wanted.is_loopback and any(one.is_loopback for one in has)):
            return str(name)
    return ""


def address_of(interface: str) -> str:
    """Return the IPv4 address of a network interface.

    Raises:
        ValueError: there is no such interface, or it has none.
    """
    found = psutil.net_if_addrs()
    if interface not in found:
        raise ValueError(f"there is no interface {interface!r}: use {', '.join(sorted(found))}")
    for one in found[interface]:
        if one.family == socket.AF_INET:
            return str(one.address)
    raise ValueError(f"interface {interface} has no IPv4 address")
