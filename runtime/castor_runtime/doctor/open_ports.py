"""What listens while doctors meet: one port of each kind that a job opens on a host."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Mapping
from contextlib import AsyncExitStack
from hashlib import sha256
from typing import Final, Self

from castor_runtime.doctor.link_rate import ProbeSource
from castor_runtime.ports import ANY_PORT, Ports
from castor_runtime.transport import Credentials, PeerServer
from castor_runtime.transport.dialler import parse_address

AGENTS: Final = "agents"
"""An agent's own port, asked as its peers ask it: who has another secret is refused."""
RENDEZVOUS: Final = "the trainers' rendezvous"
COLLECTIVES: Final = "gloo and NCCL"
"""One of the kernel's, which are all that they know."""

KINDS: Final = (AGENTS, RENDEZVOUS, COLLECTIVES)

ANSWER_S: Final = 5.0
"""A connection on a network that is in order stands within a round trip or two."""


def run_of(job: str) -> str:
    """Return the run that doctors of a job are of: no agent's, but the same on every host."""
    return sha256(f"castor doctor {job}".encode()).hexdigest()[:16]


class OpenPorts:
    """Listens at one address as an agent, a rendezvous and gloo do; an async context manager.

    Attributes:
        places: host:port of each kind, while it listens.
        token: what the plain ones say to who connects, so that he knows whom he reached.

    Args:
        address: of this host.
        ports: as given by --ports.
        credentials: that doctors prove to each other.
        job: name of the job.

    Raises:
        InputError: no port is free (when it is entered).
        OSError: the address is not this host's (likewise).
    """

    def __init__(self, address: str, ports: Ports, credentials: Credentials, job: str) -> None:
        self.places: dict[str, str] = {}
        self.token = secrets.token_hex(8)
        self._address = address
        self._ports = ports
        self._credentials = credentials
        self._job = job
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Begin to listen."""
        async with AsyncExitStack() as opening:
            server = PeerServer(
                self._address,
                self._ports,
                credentials=self._credentials,
                run=run_of(self._job),
                source=ProbeSource(),
                status=dict,
            )
            await opening.enter_async_context(server)
            self.places[AGENTS] = server.address
            for kind, ports in ((RENDEZVOUS, self._ports.of_rendezvous), (COLLECTIVES, ANY_PORT)):
                bound = ports.bind(self._address)
                host, port = bound.getsockname()[:2]
                listener = await asyncio.start_server(self._greet, sock=bound)
                await opening.enter_async_context(listener)
                self.places[kind] = f"{host}:{port}"
            self._open = opening.pop_all()
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Listen no longer."""
        await self._open.aclose()

    async def _greet(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"{self.token}\n".encode())
        writer.close()


async def unreached(places: Mapping[str, str], token: str) -> dict[str, str]:
    """Return why plain ports cannot be reached from here, by kind; of those that can nothing.

    Args:
        places: host:port of each kind; the agents' is not asked.
        token: what who listens there says.
    """
    kinds = [kind for kind in places if kind != AGENTS]
    found = await asyncio.gather(*(_fault(places[kind], token) for kind in kinds))
    return {kind: why for kind, why in zip(kinds, found, strict=True) if why}


async def _fault(place: str, token: str) -> str:
    """Return why a port cannot be reached; "" if it can."""
    try:
        host, port = parse_address(place)
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                said = await reader.readline()
            finally:
                writer.close()
    except TimeoutError:
        return f"no answer within {ANSWER_S:g} s, as where a firewall drops what comes"
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None)
        return os.strerror(number) if number else str(error)  # asyncio has words of its own
    return "" if said.decode(errors="replace").strip() == token else "somebody else answers there"
