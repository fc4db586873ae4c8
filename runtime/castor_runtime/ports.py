"""The TCP ports that an agent and its trainers' rendezvous listen at.

gloo and NCCL have no setting for theirs: the kernel gives them some of its own range
(`kernel_range`), which a machine's administrator or a container's runtime sets.
"""

from __future__ import annotations

import contextlib
import errno
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from castor_configs.errors import InputError

NEEDED: Final = 2
"""By an agent at once: one for its peers, one for the rendezvous where it is the first machine."""

_RANGE = re.compile(r"(\d{1,5})-(\d{1,5})")
_KERNEL = Path("/proc/sys/net/ipv4/ip_local_port_range")


@dataclass(frozen=True, slots=True)
class Ports:
    """A range of ports to listen at, both ends included; 0 to 0: any.

    Raises:
        ValueError: they are no such range.
    """

    first: int = 0
    last: int = 0

    def __post_init__(self) -> None:
        if not (self.first == self.last == 0 or 0 < self.first <= self.last < 1 << 16):
            raise ValueError(f"expected ports from 1 to 65535, such as 7000-7019, not {self}")

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    @classmethod
    def parse(cls, text: str) -> Ports:
        """Return the range that FIRST-LAST says; any for "".

        Raises:
            ValueError: it says none, or one too small for an agent.
        """
        if not text:
            return cls()
        match = _RANGE.fullmatch(text)
        if match is None:
            raise ValueError(f"expected FIRST-LAST, such as 7000-7019, not {text!r}")
        found = cls(int(match[1]), int(match[2]))
        if found.last - found.first + 1 < NEEDED:
            raise ValueError(
                f"{text} is one port; an agent needs {NEEDED}, one for its peers and one for the "
                "trainers' rendezvous"
            )
        return found

    @property
    def of_rendezvous(self) -> Ports:
        """Those that trainers may meet at: all but the first, which is for the agents' peers.

        Each generation begins its search one further, so that who comes late to an earlier one
        meets nobody there.
        """
        return self if self == ANY_PORT else Ports(self.first + 1, self.last)

    def bind(self, host: str, turn: int = 0) -> socket.socket:
        """Return a socket bound to the first free one at `host`; it does not listen yet.

        Args:
            host: an address of this machine, or a name of it.
            turn: which of them to try first, counted round.

        Raises:
            InputError: none is free.
            OSError: `host` is no address of this machine.
        """
        family, _, _, _, where = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        count = self.last - self.first + 1
        for step in range(count):
            port = self.first + (turn + step) % count
            bound = socket.socket(family, socket.SOCK_STREAM)
            try:
                # Else what was closed a minute ago would count as taken.
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                bound.bind((where[0], port, *where[2:]))
            except OSError as error:
                bound.close()
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return bound
        raise InputError(
            f"all of {self} are taken at {host} (ss -ltnp says by whom): give a wider range",
            key="--ports",
        )


ANY_PORT: Final = Ports()


def kernel_range() -> Ports:
    """Return the ports that the kernel gives to whoever names none; any if it does not say."""
    with contextlib.suppress(OSError, ValueError):
        first, last = _KERNEL.read_text(encoding="ascii").split()
        return Ports(int(first), int(last))
    return Ports()
