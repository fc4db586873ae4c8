"""A process with one thread that forks others on request, and tells whoever asked of their ends.

Requests and answers are JSON lines over one socket (`castor_runtime.fork_server_link` is its other
end); the server ends when the other side closes it. It has one thread because a fork copies only
the thread that calls it, and a lock that another one holds stays locked in the child for ever.

Every server says {"op": "ready", ...} once, or {"op": "unfit", "reason"}; {"op": "started", "name",
"pid"} of each process, and {"op": "ended", "name", "pid", "code"} (negative: the signal that killed
it); {"op": "pong"} when it is asked {"op": "ping"}. What is asked for else, subclasses say.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import sys
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from castor_runtime.processes import die_with_parent


def code_of(work: Callable[[], object]) -> int:
    """Run `work` as an interpreter runs its main program; return the code that it ends with."""
    try:
        work()
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(end.code + "\n")
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - its traceback belongs into its log
        traceback.print_exc()
        return 1
    return 0


def run_exit_handlers() -> None:
    """Do what an interpreter does at its end, which os._exit leaves out."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()


def freeze() -> None:
    """Leave what is there out of all collections: a child's would copy the pages that all share."""
    gc.collect()
    gc.freeze()


class ForkServer(ABC):
    """Serves one asker; a subclass says what a request starts.

    Args:
        link: this side of the socket.
    """

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._rest = b""
        self._names: dict[int, str] = {}

    @abstractmethod
    def take(self, request: dict[str, Any]) -> None:
        """Do what one request says."""

    def serve(self) -> None:
        """Take requests and reap children, until the other side closes the link.

        Raises:
            OSError: the link broke.
        """
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
        """Send one message to the other side.

        Raises:
            OSError: the link broke.
        """
        self._link.sendall(json.dumps(message).encode() + b"\n")

    def start(
        self,
        name: str,
        log: Path,
        detach: Callable[[], None],
        work: Callable[[], int],
        *,
        crashed: int,
        leads_group: bool = False,
    ) -> None:
        """Fork a child that does `work` and ends with the code it returns; tell of both.

        The child dies with this process.

        Args:
            name: by which the asker knows it.
            log: gets what the child writes to stdout and stderr.
            detach: makes the child the leader of a group or a session, before all else.
            work: what the child is for.
            crashed: the child's code if `work`, or what comes before it, raises anything.
            leads_group: whether `detach` makes it the leader of a process group.
        """
        parent = os.getpid()
        pid = os.fork()
        if pid:
            self._names[pid] = name
            if leads_group:  # both set it, so that it is set when the asker hears of the child
                with contextlib.suppress(PermissionError, ProcessLookupError):
                    os.setpgid(pid, pid)
            self.send(op="started", name=name, pid=pid)
            return
        code = crashed
        try:
            detach()
            die_with_parent(parent)
            self._become_child(log)
            code = work()
        except BaseException:  # noqa: BLE001 - whatever it is, this process ends here
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            # Not sys.exit: the stack that a child would unwind is the server's.
            os._exit(code)

    def _become_child(self, log: Path) -> None:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        # The server may ignore a terminal's Ctrl-C; its children decide for themselves.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._link.close()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)
        atexit._clear()  # what the server's imports registered is the server's to run

    def _read(self) -> bool:
        data = self._link.recv(65536)
        if not data:
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            request = json.loads(line)
            if request["op"] == "ping":
                self.send(op="pong")
            else:
                self.take(request)
        return True

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            # A process without a name is what a killed child left behind.
            if (name := self._names.pop(pid, None)) is not None:
                code = os.waitstatus_to_exitcode(status)
                self.send(op="ended", name=name, pid=pid, code=code)
