"""Processes of `castor` that are forked from one which has imported all that they import.

A run imports torch and DeepSpeed once (`castor_runtime.launcher.agent_fork_server`), which takes
ten seconds of a processor: more than most short runs train for. Here one process imports them once
for all runs of whoever asks. It forks, for each run, the launcher, which runs the very script
`castor`; and, below the launcher, the process that agents are forked from, which waits until the
launcher starts it. From there on nothing differs from a run that was started as a command. An agent
(`castor agent`, `castor run`) forks the process that its trainers are forked from by itself.

What an interpreter reads at its start cannot be changed afterwards: `can_start` says whether an
environment is one for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from castor_runtime.agent.preload import preload
from castor_runtime.fork_server import ForkServer, code_of, freeze, run_exit_handlers
from castor_runtime.launcher import agent_fork_link, agent_fork_server
from castor_runtime.processes import die_with_parent

TOKEN: Final = "CASTOR_TRIAL"  # noqa: S105 - the name of a variable
"""In the environment of a run's processes, by which they are found; `TOKEN_LENGTH` characters."""

TOKEN_LENGTH: Final = 16
_MESSAGE_BYTES: Final = 1 << 20
_ONE_THREAD: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_CRASHED: Final = 70
_MODULES: Final = (
    "castor.app",
    "castor_lab.faults.injector",
    "castor_lab.faults.requested",
    "castor_lab.pacing",
    "castor_runtime.agent.main",
    "castor_runtime.launcher.near_miss",
    "castor_runtime.launcher.training_run",
)


class WarmProcess:
    """A process that was forked; what `subprocess.Popen` has, as far as runs are asked for it.

    Args:
        server: what it was forked from.
        pid: its process.
    """

    def __init__(self, server: WarmStart, pid: int) -> None:
        self._server = server
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return its exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            self.returncode = self._server.code_of(self.pid, 0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its code.

        Raises:
            subprocess.TimeoutExpired: it has not ended after so many seconds.
        """
        if self.returncode is None:
            self.returncode = self._server.code_of(self.pid, timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it lives."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


class WarmStart:
    """The process that runs are forked from; it ends with this one, and what it has forked, too."""

    def __init__(self) -> None:
        self._environment = {**dict.fromkeys(_ONE_THREAD, "1"), **os.environ}
        self._link, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - this very interpreter, our module
                [sys.executable, "-m", "castor_lab.soak.warm_start", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=self._environment | {TOKEN: "0" * TOKEN_LENGTH},
            )
        self._rest = b""
        self._started = 0
        self._codes: dict[int, int] = {}
        self._pids: dict[str, int] = {}

    def can_start(self, environment: Mapping[str, str]) -> bool:
        """Say whether an interpreter's start would read nothing in `environment` but the same."""
        named = {n for n in (*environment, *self._environment) if n.startswith("PYTHON")}
        return all(environment.get(name) == self._environment.get(name) for name in named)

    def start(
        self, command: Sequence[str], output: Path, environment: Mapping[str, str], folder: Path
    ) -> WarmProcess:
        """Fork a process of `castor`, in a session of its own.

        Args:
            command: the script `castor`, and its arguments.
            output: a file; what the process prints is written at its end.
            environment: all of it.
            folder: where it runs.
        """
        self._started += 1
        name = str(self._started)
        request = {
            "op": "start",
            "name": name,
            "command": list(command),
            "output": str(output),
            "environment": dict(environment),
            "folder": str(folder),
        }
        self._link.sendall(json.dumps(request).encode() + b"\n")
        while name not in self._pids:
            self._take(None)
        return WarmProcess(self, self._pids[name])

    def code_of(self, pid: int, timeout_s: float | None) -> int | None:
        """Return the code that a process has ended with; None if it has not after so long."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while pid not in self._codes:
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            if not self._take(left_s):
                return None
        return self._codes[pid]

    def close(self) -> None:
        """End the server, and with it what it has forked."""
        self._link.close()
        self._process.wait()

    def _take(self, timeout_s: float | None) -> bool:
        """Take in what the server tells within a time; return whether that was anything."""
        if not select.select([self._link], [], [], timeout_s)[0]:
            return False
        data = self._link.recv(65536)
        if not data:
            raise RuntimeError("the process that runs are forked from has died")
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if message["op"] == "started":
                self._pids[message["name"]] = message["pid"]
            elif message["op"] == "ended":
                self._codes[message["pid"]] = message["code"]
        return True


class _CastorForkServer(ForkServer):
    """Forks processes of `castor`; its requests are those of `WarmStart.start`."""

    def take(self, request: dict[str, Any]) -> None:
        """See `ForkServer.take`."""
        output = Path(request["output"])
        self.start(request["name"], output, os.setsid, lambda: _launch(request), crashed=_CRASHED)


class _Forked:
    """The process that agents are forked from, in `subprocess.Popen`'s place."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def wait(self) -> int | None:
        return self._reap(0)

    def _reap(self, options: int) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, options)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code


def _launch(request: dict[str, Any]) -> int:
    environment = request["environment"]
    if TOKEN in environment:
        _show_token(environment[TOKEN])
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(request["folder"])
    # Before the launcher has a thread, a file or a lock that a copy must not have.
    pid, link = _fork_waiting()

    def start_server(
        arguments: Sequence[str],
        theirs: socket.socket,
        log: Any,
        environment: Mapping[str, str] | None,
    ) -> subprocess.Popen[bytes]:
        told = {"arguments": arguments, "environment": dict(environment or os.environ)}
        with link:
            socket.send_fds(link, [json.dumps(told).encode()], [theirs.fileno(), log.fileno()])
        return cast("subprocess.Popen[bytes]", _Forked(pid))

    vars(agent_fork_link)["start_server"] = start_server
    sys.argv = request["command"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    code = code_of(lambda: runpy.run_path(sys.argv[0], run_name="__main__"))
    run_exit_handlers()
    return code


def _fork_waiting() -> tuple[int, socket.socket]:
    """Fork what becomes the process that agents are forked from, once it is told so."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    if pid := os.fork():
        theirs.close()
        return pid, ours
    code = _CRASHED
    try:
        ours.close()
        die_with_parent(parent)
        message, descriptors, *_ = socket.recv_fds(theirs, _MESSAGE_BYTES, 2)
        theirs.close()
        if not message:  # the launcher starts no agents here
            os._exit(0)
        link, log = descriptors
        told = json.loads(message)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        os.environ.clear()
        os.environ.update(told["environment"])
        sys.path[0] = os.getcwd()  # noqa: PTH109 - as `python -m` has it
        code = agent_fork_server.main([str(link), *told["arguments"]])
    finally:
        os._exit(code)


def _show_token(token: str) -> None:
    """Have /proc show the token of this process, which was not there when its program began.

    What /proc shows lies in the process's own memory, where an interpreter's start has put it.
    """
    fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    begin, end = int(fields[47]), int(fields[48])
    at = ctypes.string_at(begin, end - begin).index(f"{TOKEN}=".encode()) + len(TOKEN) + 1
    ctypes.memmove(begin + at, token.encode("ascii"), TOKEN_LENGTH)


def main(arguments: list[str]) -> int:
    """Run the server: the descriptor of its link."""
    (descriptor,) = arguments
    os.setsid()  # a Ctrl-C at the terminal is for whoever asks
    server = _CastorForkServer(socket.socket(fileno=int(descriptor)))
    preload()
    for name in _MODULES:
        importlib.import_module(name)
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"a fork copies one of {threads} threads"
    freeze()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        server.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
