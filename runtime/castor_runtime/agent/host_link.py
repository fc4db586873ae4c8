"""The agent's end of the trainer host: start, end and kill the processes of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class HostLostError(Exception):
    """The trainer host is gone, and every trainer with it: this agent can do nothing more."""


class HostLink:
    """Asks the host for processes and hears of their ends.

    Args:
        link: the agent's end of the socket to the host.
        pid: the host's process.
    """

    def __init__(self, link: socket.socket, pid: int) -> None:
        self.pid = pid
        self._link = link
        self._lost = asyncio.Event()
        self._waiting: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._started: dict[str, asyncio.Future[int]] = {}
        self._ended: dict[int, asyncio.Future[int]] = {}
        self.ready = asyncio.Event()

    async def open(self) -> None:
        """Begin to listen to the host."""
        reader, self._writer = await asyncio.open_connection(sock=self._link)
        self._reading = asyncio.create_task(self._read(reader))

    def on_lost(self, call: Callable[[], None]) -> None:
        """Have `call` made once the host is dead; at once if it is dead already."""

        async def wait() -> None:
            await self._lost.wait()
            call()

        self._waiting = asyncio.create_task(wait())

    def preload(self, script: str) -> None:
        """Have the host import what `script` imports."""
        self._send({"op": "preload", "script": script})

    async def start_trainer(
        self,
        rank: int,
        script: str,
        arguments: tuple[str, ...],
        environment: Mapping[str, str],
        log: Path,
    ) -> int:
        """Fork a trainer and return its process id; `ended` waits for its end.

        Raises:
            HostLostError: the host has died.
        """
        return await self._ask(
            f"rank {rank}",
            {
                "op": "start",
                "rank": rank,
                "script": script,
                "arguments": list(arguments),
                "environment": dict(environment),
                "log": str(log),
            },
        )

    async def start_call(
        self, name: str, function: str, arguments: Mapping[str, Any], log: Path
    ) -> int:
        """Fork a process that calls `function` ("module:name"), and return its process id."""
        request = {"op": "call", "name": name, "function": function, "log": str(log)}
        return await self._ask(name, {**request, "arguments": dict(arguments)})

    async def ended(self, pid: int) -> int:
        """Wait for the end of a process and return its code; negative: the signal."""
        return await asyncio.shield(self._ended[pid])

    async def kill_all(self) -> None:
        """Kill every process that was started, with all its children; wait until they are gone.

        One whose start was asked for and is not yet confirmed is waited for, and killed too.
        """
        while starting := list(self._started.values()):
            await asyncio.wait(starting)
        running = {pid: end for pid, end in self._ended.items() if not end.done()}
        for pid in running:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        if running:
            await asyncio.wait(running.values())
        self._ended.clear()

    def close(self) -> None:
        """Let the host end, and with it whatever it started."""
        for task in (self._reading, self._waiting):
            if task is not None:
                task.cancel()
        if self._writer is not None:
            self._writer.close()

    async def _ask(self, name: str, request: dict[str, Any]) -> int:
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._send(request)
        self._started[name] = answer
        # Shielded: who waits may be cancelled, and the process is started all the same.
        return await asyncio.shield(answer)

    def _send(self, message: dict[str, Any]) -> None:
        if self._writer is None or self._writer.is_closing() or self._lost.is_set():
            raise HostLostError("the trainer host has died")
        self._writer.write(json.dumps(message).encode() + b"\n")

    async def _read(self, reader: asyncio.StreamReader) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionResetError):
            while line := await reader.readline():
                message = json.loads(line)
                match message["op"]:
                    case "ready":
                        self.ready.set()
                    case "started":
                        name = message.get("name") or f"rank {message['rank']}"
                        # Its end may come with the next line, before anybody waits for it.
                        self._ended[message["pid"]] = loop.create_future()
                        self._started.pop(name).set_result(message["pid"])
                    case "ended":
                        end = self._ended.get(message["pid"])
                        if end is not None and not end.done():
                            end.set_result(message["code"])
        for waiting in self._started.values():
            waiting.set_exception(HostLostError("the trainer host has died"))
        self._started.clear()
        for pid, end in self._ended.items():
            if not end.done():
                end.set_result(-signal.SIGKILL)  # they die with their host
                # Their own children do not: data loaders, and whatever else a script starts.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
        self._lost.set()
