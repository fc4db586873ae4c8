"""The launcher's side of the agents' fork server: starts it, and asks it for agents."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from castor_runtime.agent.options import AgentOptions
from castor_runtime.fork_server_link import ForkServerLink
from castor_runtime.launcher.agent_fork_server import AGENT_MAIN, PRELOAD, options_to_json
from castor_runtime.launcher.site import Place
from castor_runtime.processes import is_alive, kill_tree

_DEATH_S: Final = 5.0
"""At most so long for the kernel to end what was killed; a process in its hands may take longer."""


@dataclass(frozen=True, slots=True)
class AgentExit:
    """One agent process has ended; a negative code is the signal that killed it."""

    name: str
    pid: int
    code: int


class AgentForkLink(ForkServerLink):
    """One fork server and the agents forked from it.

    Args:
        script: the training program, whose imports are loaded too.
        log: where the server's own output goes.
        on_exit: called in the event loop whenever an agent's process has ended.
        agent_main: what an agent runs, as module:function.
        preload: what is called first, with the script, as module:function; "" for nothing.
        environment: of the server and all below it; None for this process's.
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
        super().__init__(f"the process that agents are forked from (see {log})")
        self._script = script
        self._log = log
        self._on_exit = on_exit
        self._entries = (agent_main, preload)
        self._environment = environment
        self._place = place
        self._process: subprocess.Popen[bytes] | None = None
        self.pids: dict[str, int] = {}
        """The agents whose processes live: name -> process."""

    async def open(self) -> None:
        """Start the server; `wait_ready` says when it can fork agents."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs, self._log.open("ab") as log:
            arguments = [str(os.getpid()), str(self._script), *self._entries]
            self._process = start_server(arguments, theirs, log, self._environment)
        await self.connect(ours)

    @property
    def is_empty(self) -> bool:
        """No agent lives, and none is being started."""
        return not self.pids and not self._starting

    @property
    def pid(self) -> int:
        """The server's own process."""
        assert self._process is not None, "open() comes first"
        return self._process.pid

    async def start(self, options: AgentOptions, *, label: str = "") -> int:
        """Fork an agent and return its process; `label` tells it apart, by default its name.

        Raises:
            ForkServerError: the server has died.
            ValueError: an agent of that name runs.
        """
        label = label or options.name
        if label in self.pids or label in self._starting:
            raise ValueError(f"agent {label} runs already; give the new one another name")
        place = self._place(options.name)
        return await self.ask(
            label,
            "start",
            options=options_to_json(options),
            environment=dict(place.environment),
            enter=place.enter,
            host=place.host,
        )

    def close(self) -> None:
        """Kill the server and everything below it, and wait until all of it is dead.

        What they hold of the job's shared memory cannot be removed before.
        """
        if self._process is not None:
            killed = kill_tree(self._process.pid) if self._process.poll() is None else []
            self._process.wait()
            deadline_s = time.monotonic() + _DEATH_S
            dying = [*killed, *self.pids.values()]
            while any(is_alive(pid) for pid in dying) and time.monotonic() < deadline_s:
                time.sleep(0.002)
        super().close()

    def started(self, name: str, pid: int) -> None:
        """See `ForkServerLink.started`."""
        self.pids[name] = pid

    def ended(self, name: str, pid: int, code: int) -> None:
        """See `ForkServerLink.ended`."""
        if self.pids.get(name) == pid:
            del self.pids[name]
        self._on_exit(AgentExit(name, pid, code))

    def lost(self) -> None:
        """See `ForkServerLink.lost`."""
        for name, pid in sorted(self.pids.items()):
            self.ended(name, pid, -signal.SIGKILL)


def start_server(
    arguments: Sequence[str],
    link: socket.socket,
    log: BinaryIO,
    environment: Mapping[str, str] | None,
) -> subprocess.Popen[bytes]:
    """Start the server's process; a module variable, so that tests can start it another way.

    Args:
        arguments: of `agent_fork_server.main`, but for the descriptor of the link.
        link: the server's end.
        log: where its output goes.
        environment: its own, and of all below it; None for this process's.
    """
    # Popen's thread must outlive the server (PDEATHSIG goes by thread): the event loop's.
    module = "castor_runtime.launcher.agent_fork_server"
    return subprocess.Popen(  # noqa: S603 - this very interpreter, our module
        [sys.executable, "-m", module, str(link.fileno()), *arguments],
        pass_fds=(link.fileno(),),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=environment,
    )


def inherited_environment() -> dict[str, str]:
    """Return what agents and trainers inherit: one thread each, unless the user says otherwise.

    Emulated machines share the cores, and the server must have one thread when it forks.
    """
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return one | dict(os.environ)
