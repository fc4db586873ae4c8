"""The socket on which the trainers of this machine speak with their agent: JSON lines.

An abstract Unix socket, so that nothing is left behind whoever is killed; whoever connects must
be a process of the same user.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

Handler = Callable[[int, int, dict[str, Any]], Awaitable[None]]
"""Called with the generation and rank of the trainer, and its message."""


class TrainerLink:
    """Listens for trainers; hands their messages on, and sends them the agent's.

    Args:
        job: in the socket's name, for people who look at /proc/net/unix.
        handler: gets each message, in the order of each trainer.
    """

    def __init__(self, job: str, handler: Handler) -> None:
        self.address = f"\0castor-{job}-{secrets.token_hex(8)}"
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._writers: dict[tuple[int, int], asyncio.StreamWriter] = {}

    async def open(self) -> None:
        """Begin to listen."""
        self._server = await asyncio.start_unix_server(self._serve, self.address, limit=1 << 26)

    def tell(self, generation: int, rank: int, message: dict[str, Any]) -> bool:
        """Send a message to a trainer; False if it is not connected."""
        writer = self._writers.get((generation, rank))
        if writer is None or writer.is_closing():
            return False
        writer.write(json.dumps(message).encode() + b"\n")
        return True

    async def close(self) -> None:
        """Close every connection."""
        for writer in self._writers.values():
            writer.close()
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not _is_same_user(writer.get_extra_info("socket")):
            writer.close()
            return
        who: tuple[int, int] | None = None
        try:
            while line := await reader.readline():
                message = json.loads(line)
                if message["op"] == "hello":
                    self._forget(who, writer)  # the same trainer may come to another generation
                    who = (int(message["generation"]), int(message["rank"]))
                    self._writers[who] = writer
                if who is not None:
                    await self._handler(*who, message)
        except (ConnectionResetError, BrokenPipeError):
            pass  # the trainer was killed; its end is told by the host
        finally:
            self._forget(who, writer)
            with contextlib.suppress(OSError):
                writer.close()

    def _forget(self, who: tuple[int, int] | None, writer: asyncio.StreamWriter) -> None:
        if who is not None and self._writers.get(who) is writer:
            del self._writers[who]


def _is_same_user(connection: socket.socket) -> bool:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", raw)
    return bool(user == os.getuid())
