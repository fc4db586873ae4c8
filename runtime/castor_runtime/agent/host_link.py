"""The agent's end of the trainer host: start, end and kill the processes of this machine.

Nothing here waits for the host without a bound. It is asked for a sign of life all the time; one
that stands still is killed, and an agent without its host ends, so that whoever supervises it
starts it again with a new one (a host can only be forked before an agent has threads). Whether a
process has ended is seen in /proc, not only told by the host: a stopped host tells nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from castor_policy.membership import Stillness
from castor_runtime.agent.script_files import ScriptFiles
from castor_runtime.processes import is_alive, is_stopped, processor_s

PING_EVERY_S = 0.5

STOPPED_S = 3.0
"""A host that the kernel says is stopped for so long is lost."""

SILENT_S = 60.0
"""One that answers nothing and is given no processor time: imports from a slow disk take long."""

KILL_S = 20.0
"""Killed processes are waited for so long: one that the kernel holds runs no more of its program,
and so writes no checkpoint memory any more."""

_LOOK_EVERY_S = 0.02


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
        self._pongs = 0
        self._watching: asyncio.Task[None] | None = None
        self.ready = asyncio.Event()

    async def open(self) -> None:
        """Begin to listen to the host."""
        reader, self._writer = await asyncio.open_connection(sock=self._link)
        self._reading = asyncio.create_task(self._read(reader))
        self._watching = asyncio.create_task(self._watch())

    def on_lost(self, call: Callable[[], None]) -> None:
        """Have `call` made once the host is dead; at once if it is dead already."""

        async def wait() -> None:
            await self._lost.wait()
            call()

        self._waiting = asyncio.create_task(wait())

    def preload(self, files: ScriptFiles) -> None:
        """Have the host hold these files, and import what the script imports."""
        sources = {path: b64encode(source).decode() for path, source in files.sources.items()}
        self._send({"op": "preload", "script": files.script, "sources": sources})

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

        One whose start was asked for and is not yet confirmed is waited for, and killed too; a host
        that does not confirm it is lost in the end, and they die with it. Returns after `KILL_S`
        at the latest once all are killed.
        """
        while starting := list(self._started.values()):
            await asyncio.wait(starting)
        running = {pid: end for pid, end in self._ended.items() if not end.done()}
        for pid in running:
            _kill_group(pid)
        give_up_s = time.monotonic() + KILL_S
        while left := [pid for pid in running if is_alive(pid)]:
            if time.monotonic() > give_up_s:
                sys.stderr.write(
                    f"processes {left} were killed {KILL_S:g} s ago and the kernel still holds "
                    "them (a device or storage hangs); this machine goes on without them\n"
                )
                break
            await asyncio.sleep(_LOOK_EVERY_S)
        for end in running.values():
            if not end.done():
                end.set_result(-signal.SIGKILL)  # the host is stopped, or has not said so yet
        self._ended.clear()

    def close(self) -> None:
        """Let the host end, and with it whatever it started."""
        for task in (self._reading, self._waiting, self._watching):
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

    async def _watch(self) -> None:
        """Ask the host for a sign of life; end one that gives none."""
        stopped, silent = (
            Stillness(STOPPED_S, 2 * PING_EVERY_S),
            Stillness(SILENT_S, 2 * PING_EVERY_S),
        )
        while not self._lost.is_set():
            with contextlib.suppress(HostLostError):
                self._send({"op": "ping"})
            await asyncio.sleep(PING_EVERY_S)
            now_s, busy_s = time.monotonic(), processor_s(self.pid)
            # Not stopped: this time counts for nothing.
            at_s = 0.0 if is_stopped(self.pid) else now_s
            held = stopped.observe(now_s, self._pongs, at_s)
            if silent.observe(now_s, self._pongs, busy_s or 0.0) or held:
                what = "is stopped" if held else "answers nothing"
                sys.stderr.write(f"the trainer host {what}: it is killed, and this agent ends\n")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
                self._host_gone()
                return

    async def _read(self, reader: asyncio.StreamReader) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionResetError):
            while line := await reader.readline():
                message = json.loads(line)
                match message["op"]:
                    case "pong":
                        self._pongs += 1
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
        self._host_gone()

    def _host_gone(self) -> None:
        """Take in that the host is dead, or as good as dead, and its trainers with it."""
        for waiting in self._started.values():
            waiting.set_exception(HostLostError("the trainer host has died"))
        self._started.clear()
        for pid, end in self._ended.items():
            if not end.done():
                end.set_result(-signal.SIGKILL)  # they die with their host
                # Their own children do not: data loaders, and whatever else a script starts.
                _kill_group(pid)
        self._lost.set()


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
