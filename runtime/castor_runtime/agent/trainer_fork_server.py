"""The trainers' fork server: it has imported everything, and forks trainers in milliseconds.

It is forked from the agent before the agent starts its first thread, has one thread itself, and
never touches a GPU: a CUDA context does not survive a fork. Its trainers die with it, and it
dies with the agent. It is asked, beside what every `ForkServer` is:

- {"op": "preload", "script", "sources": {path: base64}, "tiers": [url]};
- {"op": "start", "name", "script", "arguments", "environment", "log"}: a trainer;
- {"op": "call", "name", "function": "module:name", "arguments", "log"}: any other process.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import sys
import traceback
from base64 import b64decode
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from castor_runtime.agent.import_effects import import_effects
from castor_runtime.agent.preload import preload
from castor_runtime.agent.script_files import ScriptFiles, held, hold, run_held
from castor_runtime.arena.own_turn import TURN_S
from castor_runtime.fork_server import ForkServer, code_of, freeze, run_exit_handlers
from castor_runtime.named import named
from castor_runtime.persistent.address import require_usable
from castor_runtime.processes import die_with_parent
from castor_runtime.trainer import meeting
from castor_runtime.trainer.agent_link import TrainerSettings
from castor_runtime.trainer.last_copy import wait_for_last_copy


def fork_trainer_server() -> tuple[int, socket.socket]:
    """Fork the server; return its process id and the agent's end of the socket.

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
        server = TrainerForkServer(theirs)
        preload()
        server.send(op="ready")
        server.serve()
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, this process ends here
        traceback.print_exc()
    finally:
        os._exit(code)


class TrainerForkServer(ForkServer):
    """Serves one agent until it goes away."""

    def take(self, request: dict[str, Any]) -> None:
        """See `ForkServer.take`, and the module's head."""
        if request["op"] == "preload":
            sources = {path: b64decode(text) for path, text in request["sources"].items()}
            hold(ScriptFiles(request["script"], sources))
            preload(Path(request["script"]))
            _import_writers(request["tiers"])
            freeze()
        elif request["op"] == "start":
            self._start(request, lambda: _run_script(request))
        else:
            self._start(request, lambda: named(request["function"])(**request["arguments"]))

    def _start(self, request: dict[str, Any], work: Callable[[], object]) -> None:
        self.start(
            request["name"],
            Path(request["log"]),
            _lead_group,
            lambda: _ended_by(work),
            crashed=1,
            leads_group=True,
        )


def _import_writers(tiers: Sequence[str]) -> None:
    """Import what the processes need that write to these tiers."""
    for tier in tiers:
        importlib.import_module("castor_runtime.persistent.machine_share")
        with contextlib.suppress(ValueError):  # who writes will say it
            require_usable(tier)


def _lead_group() -> None:
    os.setpgid(0, 0)  # a trainer's own children (data loaders) are killed with it


def _ended_by(work: Callable[[], object]) -> int:
    """Run `work` as an interpreter runs its main program, to its exit handlers; return its code."""
    code = code_of(work)
    wait_for_last_copy(TURN_S)
    if code == 0:
        # os._exit follows, which spares a forked process the torch runtime's own tear-down.
        run_exit_handlers()
    return code


def _run_script(request: dict[str, Any]) -> None:
    os.environ.update(request["environment"])
    script = request["script"]
    sys.argv = [script, *request["arguments"]]
    sys.path.insert(0, str(Path(script).resolve().parent))
    effects = import_effects()
    effects.check()
    threads = os.environ.get("OMP_NUM_THREADS", "")  # torch read the variable at import
    effects.release(int(threads) if threads.isdigit() else None)
    settings = TrainerSettings.from_environment()
    if settings is not None and held(Path(script)).names_iteration:
        _make_replaceable_groups(settings)
    else:
        meeting.install()
    run_held(script)


def _make_replaceable_groups(settings: TrainerSettings) -> None:
    """Have this process's groups be such that it can go on in place; see docs/recovery.md."""
    groups: Any = importlib.import_module("castor_runtime.trainer.swap.groups")

    def meet() -> Any:
        place = os.environ[meeting.VARIABLE]
        store = meeting.meet(place, settings.rank, settings.world_size, meeting.PATIENCE)
        return groups.Connection(store, settings.generation)

    groups.Groups(None if settings.in_place else meet).install()
