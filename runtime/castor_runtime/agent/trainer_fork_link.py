"""The agent's side of the trainers' fork server: start and kill the processes of this machine.

Nothing here waits for the server without a bound. It is asked for a sign of life all the time; one
that stands still is killed, and an agent without its server ends, so that whoever supervises it
starts it again with a new one (it can only be forked before an agent has threads). Whether a
process has ended is seen in /proc, not only told by the server: a stopped one tells nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from castor_policy.trainer_watch import Stillness
from castor_runtime.agent.script_files import ScriptFiles
from castor_runtime.fork_server_link import ForkServerError, ForkServerLink
from castor_runtime.processes import activity, is_alive

PING_EVERY_S = 0.5

STOPPED_S = 3.0
"""A server that the kernel says is stopped for so long is lost."""

SILENT_S = 60.0
"""One that answers nothing and is given no processor time: imports from a slow disk take long."""

KILL_S = 20.0
"""Killed processes are waited for so long: one that the kernel holds runs no more of its program,
and so writes no checkpoint memory any more."""

_LOOK_EVERY_S = 0.02


class TrainerForkLink(ForkServerLink):
    """Asks the server for processes and hears of their ends.

    Args:
        link: the agent's end of the socket to the server.
        pid: the server's process.
    """

    def __init__(self, link: socket.socket, pid: int) -> None:
        super().__init__("the process that trainers are forked from")
        self.pid = pid
        self._link = link
        self._waiting: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._ended: dict[int, asyncio.Future[int]] = {}
        self._pongs = 0

    async def open(self) -> None:
        """Begin to listen to the server, and to watch it."""
        await self.connect(self._link)
        self._watching = asyncio.create_task(self._watch())

    def on_lost(self, call: Callable[[], None]) -> None:
        """Have `call` made once the server is dead; at once if it is dead already."""

        async def wait() -> None:
            await self._gone.wait()
            call()

        self._waiting = asyncio.create_task(wait())

    def preload(self, files: ScriptFiles, tiers: Sequence[str]) -> None:
        """Have the server hold these files, and import what the script imports.

        And what writing to these tiers takes: else each upload begins with a second of that.
        """
        sources = {path: b64encode(source).decode() for path, source in files.sources.items()}
        self.send("preload", script=files.script, sources=sources, tiers=list(tiers))

    async def start_trainer(
        self,
        rank: int,
        script: str,
        arguments: tuple[str, ...],
        environment: Mapping[str, str],
        log: Path,
    ) -> int:
        """Fork a trainer and return its process id; `wait_end` waits for its end.

        Raises:
            ForkServerError: the server has died.
        """
        return await self.ask(
            f"rank {rank}",
            "start",
            script=script,
            arguments=list(arguments),
            environment=dict(environment),
            log=str(log),
        )

    async def start_call(
        self, name: str, function: str, arguments: Mapping[str, Any], log: Path
    ) -> int:
        """Fork a process that calls `function` ("module:name"), and return its process id."""
        return await self.ask(
            name, "call", function=function, arguments=dict(arguments), log=str(log)
        )

    async def wait_end(self, pid: int) -> int:
        """Wait for the end of a process and return its code; negative: the signal."""
        return await asyncio.shield(self._ended[pid])

    async def kill_all(self, keep: Collection[int] = ()) -> None:
        """Kill every process that was started, with all its children; wait until they are gone.

        Args:
            keep: processes that are left alone.

        One whose start was asked for and is not yet confirmed is waited for, and killed too; a
        server that does not confirm it is lost in the end, and they die with it. Returns after
        `KILL_S` at the latest once all are killed.
        """
        while starting := list(self._starting.values()):
            await asyncio.wait(starting)
        kept = {pid: end for pid, end in self._ended.items() if pid in keep}
        running = {
            pid: end for pid, end in self._ended.items() if pid not in kept and not end.done()
        }
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
                end.set_result(-signal.SIGKILL)  # the server is stopped, or is yet to say it
        self._ended = kept

    def close(self) -> None:
        """Let the server end, and with it whatever it started."""
        for task in (self._waiting, self._watching):
            if task is not None:
                task.cancel()
        super().close()

    def started(self, _name: str, pid: int) -> None:
        """See `ForkServerLink.started`."""
        # Its end may come with the next line, before anybody waits for it.
        self._ended[pid] = asyncio.get_running_loop().create_future()

    def ended(self, _name: str, pid: int, code: int) -> None:
        """See `ForkServerLink.ended`."""
        end = self._ended.get(pid)
        if end is not None and not end.done():
            end.set_result(code)

    def answered(self) -> None:
        """See `ForkServerLink.answered`."""
        self._pongs += 1

    def lost(self) -> None:
        """See `ForkServerLink.lost`."""
        for pid, end in self._ended.items():
            if not end.done():
                end.set_result(-signal.SIGKILL)  # they die with their server
                # Their own children do not: data loaders, and whatever else a script starts.
                _kill_group(pid)

    async def _watch(self) -> None:
        """Ask the server for a sign of life; end one that gives none."""
        stopped, silent = (
            Stillness(STOPPED_S, 2 * PING_EVERY_S),
            Stillness(SILENT_S, 2 * PING_EVERY_S),
        )
        while not self._gone.is_set():
            with contextlib.suppress(ForkServerError):
                self.send("ping")
            await asyncio.sleep(PING_EVERY_S)
            now_s, (busy_s, stands) = time.monotonic(), activity(self.pid)
            # Not stopped: this time counts for nothing.
            at_s = 0.0 if stands else now_s
            held = stopped.observe(now_s, self._pongs, at_s)
            if silent.observe(now_s, self._pongs, busy_s or 0.0) or held:
                what = "is stopped" if held else "answers nothing"
                sys.stderr.write(f"{self._what} {what}: it is killed, and this agent ends\n")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
                self.give_up()
                return


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
