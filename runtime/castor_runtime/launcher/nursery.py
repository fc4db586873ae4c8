"""The process from which emulated machines are forked, with all that they import already there.

Four emulated machines would import torch and DeepSpeed four times, one after the other on few
cores. The nursery imports them once; an agent forked from it runs the same main function as
`castor agent`, in a session of its own, and nothing in it knows where it came from.

It has one thread: a fork copies only the thread that calls it, and a lock that another one holds
stays locked in the child for ever.

Protocol, JSON lines over the socket that it inherits. From the launcher: {"op": "start", "name",
"options": {fields of AgentOptions}, "namespace", "environment"}: on an emulated host the agent
enters its network namespace first. To the launcher: {"op": "ready", "seconds", "threads"} or
{"op": "unfit", "reason"} once, {"op": "started", "name", "pid"}, {"op": "exited", "name", "pid",
"code"} (negative: killed by that signal). It ends with the launcher, and its agents with it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from castor_runtime.agent.options import AgentOptions
from castor_runtime.emulated_cluster.namespaces import enter
from castor_runtime.processes import adopt_orphans, die_with_parent

AGENT_MAIN: Final = "castor_runtime.agent.main:run_agent"
PRELOAD: Final = "castor_runtime.agent.preload:preload"

CRASHED: Final = 70
"""Exit code of an agent that ended with an exception (sysexits' EX_SOFTWARE)."""
REFUSED: Final = 2
"""Exit code of an agent whose input a person must mend, as of the command line."""

_PATHS = ("folder", "secret", "tls_ca", "tls_certificate", "tls_key")


def options_to_json(options: AgentOptions) -> dict[str, Any]:
    """Return `options` as JSON has it."""
    names = AgentOptions.__dataclass_fields__
    document = {name: getattr(options, name) for name in sorted(names)}
    return {k: str(v) if isinstance(v, Path) else v for k, v in document.items()}


def options_from_json(document: dict[str, Any]) -> AgentOptions:
    """Read what `options_to_json` wrote."""
    paths = {key: Path(document[key]) for key in _PATHS if document.get(key) is not None}
    return AgentOptions(**(document | paths))


def _entry(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


class _Nursery:
    """Serves one launcher until it goes away."""

    def __init__(self, link: socket.socket, agent_main: str) -> None:
        self._link = link
        self._agent_main = agent_main
        self._names: dict[int, str] = {}
        self._rest = b""

    def serve(self) -> None:
        """Fork agents as asked, and tell of their ends, until the launcher closes the link."""
        # A signal writes a byte, so that select() returns and nothing runs inside a handler.
        woken, wake = os.pipe()
        os.set_blocking(woken, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        with selectors.DefaultSelector() as selector:
            selector.register(self._link, selectors.EVENT_READ)
            selector.register(woken, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select()}
                if woken in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(woken, 4096)
                    self._reap()
                if self._link.fileno() in ready and not self._read():
                    return

    def send(self, **message: Any) -> None:
        self._link.sendall(json.dumps(message).encode() + b"\n")

    def _read(self) -> bool:
        data = self._link.recv(65536)
        if not data:
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            request = json.loads(line)
            self._start(request)
        return True

    def _start(self, request: dict[str, Any]) -> None:
        name = request["name"]
        log = Path(request["options"]["folder"]) / "agent.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._be_agent(parent, log, request)
        self._names[pid] = name
        self.send(op="started", name=name, pid=pid)

    def _be_agent(self, parent: int, log: Path, request: dict[str, Any]) -> None:
        code = CRASHED
        try:
            os.setsid()
            die_with_parent(parent)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            # A terminal's Ctrl-C is the launcher's to handle.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._link.close()
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            os.close(descriptor)
            if request["namespace"]:
                enter(request["namespace"])
            os.environ.update(request["environment"])
            code = _entry(self._agent_main)(options_from_json(request["options"]))
        except BaseException as error:  # noqa: BLE001 - whatever it is, this process ends here
            code = REFUSED if type(error).__name__ == "InputError" else CRASHED
            if code == REFUSED:
                sys.stderr.write(f"castor: {error}\n")
            else:
                traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            # Not sys.exit: what the nursery registered to run at its exit is not the agent's.
            os._exit(code)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            # A process without a name is what a killed agent left behind.
            if (name := self._names.pop(pid, None)) is not None:
                code = os.waitstatus_to_exitcode(status)
                self.send(op="exited", name=name, pid=pid, code=code)


def main(arguments: list[str]) -> int:
    """Run the nursery: FD PARENT SCRIPT AGENT_MAIN PRELOAD ("" for none)."""
    descriptor, parent, script, agent_main, preload = arguments
    os.setsid()  # a Ctrl-C at the launcher's terminal must not reach the agents by itself
    die_with_parent(int(parent))
    adopt_orphans()
    link = socket.socket(fileno=int(descriptor))
    nursery = _Nursery(link, agent_main)
    began = time.monotonic()
    try:
        if preload:
            _entry(preload)(Path(script))
        _entry(agent_main)
    except Exception as error:  # noqa: BLE001 - told to the launcher, which shows it
        traceback.print_exc()
        nursery.send(op="unfit", reason=f"{type(error).__name__}: {error}")
        return 1
    gc.collect()
    gc.freeze()  # so that a child's collector does not copy the pages that all share
    threads = len(list(Path("/proc/self/task").iterdir()))
    nursery.send(op="ready", seconds=time.monotonic() - began, threads=threads)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        nursery.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
