"""The launcher's side of the nursery: starts it, asks for agents, hears of their ends."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from castor_runtime.agent.options import AgentOptions
from castor_runtime.launcher.nursery import AGENT_MAIN, PRELOAD, options_to_json
from castor_runtime.launcher.site import Place
from castor_runtime.processes import is_alive, kill_tree

_DEATH_S: Final = 5.0
"""At most so long for the kernel to end what was killed; a process in its hands may take longer."""


class NurseryError(RuntimeError):
    """The nursery could not import what agents and trainers need, or died."""


@dataclass(frozen=True, slots=True)
class AgentExit:
    """One agent process has ended; a negative code is the signal that killed it."""

    name: str
    pid: int
    code: int


class NurseryLink:
    """One nursery and the agents forked from it.

    Args:
        script: the training program, whose imports are loaded too.
        log: where the nursery's own output goes.
        on_exit: called in the event loop whenever an agent's process has ended.
        agent_main: what an agent runs, as module:function.
        preload: what is called first, with the script, as module:function; "" for nothing.
        environment: of the nursery and all below it; None for this process's.
        place: says where an agent of that name runs.
    """

    def __init__(
        self,
        script: Path,
        log: Path,
        on_exit: Callable[[AgentExit], None],
        *,
        agent_main: str = AGENT_MAIN,
        preload: str = PRELOAD,
        environment: dict[str, str] | None = None,
        place: Callable[[str], Place] = lambda _: Place(),
    ) -> None:
        self._script = script
        self._log = log
        self._on_exit = on_exit
        self._entries = (agent_main, preload)
        self._environment = environment
        self._place = place
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[dict[str, Any]] | None = None
        self._starting: dict[str, asyncio.Future[int]] = {}
        self.pids: dict[str, int] = {}
        """The agents whose processes live: name -> process."""

    async def open(self) -> None:
        """Start the nursery; `wait_ready` says when it can fork agents."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs, self._log.open("ab") as log:
            # Popen's thread must outlive the nursery (PDEATHSIG goes by thread): the event loop's.
            self._process = subprocess.Popen(  # noqa: S603 - this very interpreter, our module
                [
                    sys.executable,
                    "-m",
                    "castor_runtime.launcher.nursery",
                    str(theirs.fileno()),
                    str(os.getpid()),
                    str(self._script),
                    *self._entries,
                ],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
            )
        self._ready = asyncio.get_running_loop().create_future()
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._reading = asyncio.create_task(self._read(reader))

    @property
    def is_empty(self) -> bool:
        """No agent lives, and none is being started."""
        return not self.pids and not self._starting

    @property
    def pid(self) -> int:
        """The nursery's own process."""
        assert self._process is not None, "open() comes first"
        return self._process.pid

    async def wait_ready(self) -> dict[str, Any]:
        """Wait until all is imported; return how long it took and the nursery's threads.

        Raises:
            NurseryError: an import failed, or the nursery died.
        """
        assert self._ready is not None, "open() comes first"
        return await asyncio.shield(self._ready)

    async def start(self, options: AgentOptions, *, label: str = "") -> int:
        """Fork an agent and return its process; `label` tells it apart, by default its name.

        Raises:
            NurseryError: the nursery has died.
            ValueError: an agent of that name runs.
        """
        label = label or options.name
        if label in self.pids or label in self._starting:
            raise ValueError(f"agent {label} runs already; give the new one another name")
        if self._writer is None or self._reading is None or self._reading.done():
            raise NurseryError("the process that agents are forked from has ended")
        place = self._place(options.name)
        waiting: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._starting[label] = waiting
        request = {
            "op": "start",
            "name": label,
            "options": options_to_json(options),
            "environment": dict(place.environment),
            "enter": place.enter,
            "host": place.host,
        }
        self._writer.write(json.dumps(request).encode() + b"\n")
        return await waiting

    def close(self) -> None:
        """Kill the nursery and everything below it, and wait until all of it is dead.

        What they hold of the job's shared memory cannot be removed before.
        """
        if self._process is not None:
            killed = kill_tree(self._process.pid) if self._process.poll() is None else []
            self._process.wait()
            deadline_s = time.monotonic() + _DEATH_S
            dying = [*killed, *self.pids.values()]
            while any(is_alive(pid) for pid in dying) and time.monotonic() < deadline_s:
                time.sleep(0.002)
        if self._reading is not None:
            self._reading.cancel()
        if self._writer is not None:
            self._writer.close()
        if self._ready is not None and self._ready.done() and not self._ready.cancelled():
            self._ready.exception()  # seen: an early end need not be complained of again

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._take(json.loads(line))
        except ConnectionResetError:
            pass
        self._fail(NurseryError(f"the process that agents are forked from died; see {self._log}"))

    def _fail(self, error: NurseryError) -> None:
        assert self._ready is not None, "open() made it"
        if not self._ready.done():
            self._ready.set_exception(error)
        for waiting in self._starting.values():
            waiting.set_exception(error)
        self._starting.clear()
        for name, pid in sorted(self.pids.items()):
            self.pids.pop(name)
            self._on_exit(AgentExit(name, pid, -9))

    def _take(self, message: dict[str, Any]) -> None:
        assert self._ready is not None, "open() made it"
        match message["op"]:
            case "ready":
                self._ready.set_result(message)
            case "unfit":
                self._ready.set_exception(NurseryError(message["reason"]))
            case "started":
                self.pids[message["name"]] = message["pid"]
                self._starting.pop(message["name"]).set_result(message["pid"])
            case "exited":
                if self.pids.get(message["name"]) == message["pid"]:
                    del self.pids[message["name"]]
                self._on_exit(AgentExit(message["name"], message["pid"], message["code"]))
            case other:
                raise ValueError(f"the nursery said {other!r}; both must be of one version")


def inherited_environment() -> dict[str, str]:
    """Return what agents and trainers inherit: one thread each, unless the user says otherwise.

    Emulated machines share the cores, and the nursery must have one thread when it forks.
    """
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return one | dict(os.environ)
