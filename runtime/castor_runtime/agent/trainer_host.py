"""The trainer host: a process that has imported everything, and forks trainers in milliseconds.

It is forked from the agent before the agent starts its first thread, has one thread itself, and
never touches a GPU: a CUDA context does not survive a fork. Its trainers die with it, and it
dies with the agent. JSON lines over the socket between the two:

- to the host: {"op": "preload", "script"}; {"op": "start", "rank", "script", "arguments",
  "environment", "log"}; {"op": "call", "name", "function": "module:name", "arguments", "log"}
- to the agent: {"op": "ready"}; {"op": "started", "pid", "rank" | "name"}; {"op": "ended", "pid",
  "code"} (negative: the signal).
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from castor_runtime.agent.preload import preload
from castor_runtime.processes import die_with_parent


def fork_host() -> tuple[int, socket.socket]:
    """Fork the host; return its process id and the agent's end of the socket.

    Call it from the agent's main thread before there is another: a fork copies only the thread
    that calls it, and a lock that another one holds stays locked in the child for ever.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    parent = os.getpid()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    code = 1
    try:
        ours.close()
        die_with_parent(parent)
        # An operator's Ctrl-C is the agent's to handle.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _Host(theirs).serve()
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, this process ends here
        traceback.print_exc()
    finally:
        os._exit(code)


class _Host:
    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._rest = b""

    def serve(self) -> None:
        preload()
        self._send(op="ready")
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

    def _send(self, **message: Any) -> None:
        self._link.sendall(json.dumps(message).encode() + b"\n")

    def _read(self) -> bool:
        data = self._link.recv(65536)
        if not data:
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._serve_one(json.loads(line))
        return True

    def _serve_one(self, request: dict[str, Any]) -> None:
        if request["op"] == "preload":
            preload(Path(request["script"]))
            gc.collect()
            gc.freeze()  # so that a child's collector does not copy the pages that all share
        elif request["op"] == "start":
            pid = self._fork(request, lambda: _run_script(request))
            self._send(op="started", pid=pid, rank=request["rank"])
        else:
            pid = self._fork(request, lambda: _call(request))
            self._send(op="started", pid=pid, name=request["name"])

    def _fork(self, request: dict[str, Any], work: Callable[[], None]) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            # Both sides set it, so that whoever comes first: it is set when the agent hears of it.
            with contextlib.suppress(PermissionError, ProcessLookupError):
                os.setpgid(pid, pid)
            return pid
        code = 1
        try:
            os.setpgid(0, 0)  # its own children (data loaders) are killed with it
            die_with_parent(parent)
            self._become_child(request["log"])
            code = _ended_by(work)
        except BaseException:  # noqa: BLE001 - whatever it is, this process ends here
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _become_child(self, log: str) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._link.close()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)
        atexit._clear()  # what the host's imports registered is the host's to run

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._send(op="ended", pid=pid, code=os.waitstatus_to_exitcode(status))


def _ended_by(work: Callable[[], None]) -> int:
    """Run `work` as an interpreter runs its main program, to its exit handlers; return its code."""
    code = 0
    try:
        work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(end.code + "\n")
    except BaseException:  # noqa: BLE001 - a trainer's traceback belongs into its log
        traceback.print_exc()
        code = 1
    if code == 0:
        # os._exit follows, which spares a forked process the torch runtime's own tear-down.
        threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter's own end does
        atexit._run_exitfuncs()
    return code


def _run_script(request: dict[str, Any]) -> None:
    os.environ.update(request["environment"])
    script = request["script"]
    sys.argv = [script, *request["arguments"]]
    sys.path.insert(0, str(Path(script).resolve().parent))
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(threads))  # it read the variable at import
    runpy.run_path(script, run_name="__main__")


def _call(request: dict[str, Any]) -> None:
    module, _, function = request["function"].partition(":")
    getattr(importlib.import_module(module), function)(**request["arguments"])
