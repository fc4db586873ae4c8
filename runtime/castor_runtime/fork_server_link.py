"""The asking side of a `ForkServer`: ask for processes, and hear of their ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any


class ForkServerError(RuntimeError):
    """The fork server has died, or could not import what the processes need."""


class ForkServerLink:
    """Asks one fork server. A subclass says what is asked for, and what an end means.

    Args:
        what: names the server in errors.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[dict[str, Any]] | None = None
        self._starting: dict[str, asyncio.Future[int]] = {}
        self._gone = asyncio.Event()

    async def connect(self, link: socket.socket) -> None:
        """Begin to listen to the server at the other end of `link`."""
        self._ready = asyncio.get_running_loop().create_future()
        reader, self._writer = await asyncio.open_connection(sock=link)
        self._reading = asyncio.create_task(self._read(reader))

    async def wait_ready(self) -> dict[str, Any]:
        """Wait until the server has imported everything; return what it says of that.

        Raises:
            ForkServerError: an import failed, or the server died.
        """
        assert self._ready is not None, "connect() comes first"
        return await asyncio.shield(self._ready)

    async def ask(self, name: str, op: str, **request: Any) -> int:
        """Have a process forked and return its id.

        Who waits may be cancelled, and the process is forked all the same.

        Raises:
            ForkServerError: the server has died.
        """
        self.send(op, name=name, **request)
        self._starting[name] = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._starting[name])

    def send(self, op: str, **body: Any) -> None:
        """Send one message.

        Raises:
            ForkServerError: the server has died.
        """
        if self._writer is None or self._writer.is_closing() or self._gone.is_set():
            raise ForkServerError(f"{self._what} has died")
        self._writer.write(json.dumps({"op": op, **body}).encode() + b"\n")

    def close(self) -> None:
        """Close the link: the server ends, and whatever it forked."""
        if self._reading is not None:
            self._reading.cancel()
        if self._writer is not None:
            self._writer.close()
        if self._ready is not None and self._ready.done() and not self._ready.cancelled():
            self._ready.exception()  # seen: an early end need not be complained of again

    # ---- what a subclass hears of -------------------------------------------------------------

    def started(self, name: str, pid: int) -> None:
        """Hear that a process was forked, before whoever asked for it goes on."""

    def ended(self, name: str, pid: int, code: int) -> None:
        """Hear of a process's end; a negative code is the signal that killed it."""

    def answered(self) -> None:
        """Hear that the server has answered a ping."""

    def lost(self) -> None:
        """Hear that the server is dead, and with it whatever it forked."""

    # ---- the link -------------------------------------------------------------------------------

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionResetError):
            while line := await reader.readline():
                self._take(json.loads(line))
        self.give_up()

    def give_up(self) -> None:
        """Take in that the server is dead, or as good as dead."""
        if self._gone.is_set():
            return
        self._gone.set()
        error = ForkServerError(f"{self._what} has died")
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(error)
        for waiting in self._starting.values():
            waiting.set_exception(error)
        self._starting.clear()
        self.lost()

    def _take(self, message: dict[str, Any]) -> None:
        assert self._ready is not None, "connect() made it"
        match message["op"]:
            case "ready":
                self._ready.set_result(message)
            case "unfit":
                self._ready.set_exception(ForkServerError(message["reason"]))
            case "pong":
                self.answered()
            case "started":
                self.started(message["name"], message["pid"])
                self._starting.pop(message["name"]).set_result(message["pid"])
            case "ended":
                self.ended(message["name"], message["pid"], message["code"])
            case other:
                raise ValueError(f"{self._what} said {other!r}; both must be of one version")
