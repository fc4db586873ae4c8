"""An agent's peer server, which answers as one life until its input ends.

    python linked_program.py HOST PORTS LIFE

Prints its address.
"""

from __future__ import annotations

import asyncio
import sys

from castor_runtime.ports import Ports
from castor_runtime.transport import JobSecret, PartMissingError, PeerServer

RUN = "0123456789abcdef"
SECRET = JobSecret(b"the secret of a test job, 32 bytes"[:32])


class NoParts:
    """This process holds nothing."""

    def open(self, rank: int, iteration: int) -> object:
        raise PartMissingError(f"no part of rank {rank} at {iteration}")


async def main(host: str, ports: str, life: str) -> None:
    async with PeerServer(
        host,
        Ports.parse(ports),
        run=RUN,
        credentials=SECRET,
        source=NoParts(),  # type: ignore[arg-type]  # it has no part to return
        status=lambda: {"incarnation": life},
    ) as server:
        sys.stdout.write(f"{server.address}\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
