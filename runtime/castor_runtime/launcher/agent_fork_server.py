"""The process from which emulated machines are forked, with all that they import already there.

Four emulated machines would import torch and DeepSpeed four times, one after the other on few
cores. This server imports them once; an agent forked from it runs the same main function as
`castor agent`, in a session of its own, and nothing in it knows where it came from. It ends with
the launcher, and its agents with it.

It is asked, beside what every `ForkServer` is: {"op": "start", "name", "options": {fields of
AgentOptions}, "environment", "enter", "host"} (the latter three: see `site.Place`). It is ready
after so many "seconds", with so many "threads".
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Final

from castor_configs.errors import InputError
from castor_policy.agents.exit_codes import REFUSED
from castor_runtime.agent.options import AgentOptions
from castor_runtime.fork_server import ForkServer, freeze
from castor_runtime.named import named
from castor_runtime.processes import adopt_orphans, die_with_parent

AGENT_MAIN: Final = "castor_runtime.agent.main:run_agent"
PRELOAD: Final = "castor_runtime.agent.preload:preload"

CRASHED: Final = 70
"""Exit code of an agent that ended with an exception (sysexits' EX_SOFTWARE)."""

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


class AgentForkServer(ForkServer):
    """Serves one launcher until it goes away."""

    def __init__(self, link: socket.socket, agent_main: str) -> None:
        super().__init__(link)
        self._agent_main = agent_main

    def take(self, request: dict[str, Any]) -> None:
        """See `ForkServer.take`, and the module's head."""
        log = Path(request["options"]["folder"]) / "agent.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self.start(
            request["name"], log, os.setsid, lambda: self._run_agent(request), crashed=CRASHED
        )

    def _run_agent(self, request: dict[str, Any]) -> int:
        os.environ.update(request["environment"])
        if request["enter"]:
            named(request["enter"])(request["host"])
        try:
            code: int = named(self._agent_main)(options_from_json(request["options"]))
        except InputError as error:
            sys.stderr.write(f"castor: {error}\n")
            return REFUSED
        return code


def main(arguments: list[str]) -> int:
    """Run the server: FD PARENT SCRIPT AGENT_MAIN PRELOAD ("" for none)."""
    descriptor, parent, script, agent_main, preload = arguments
    os.setsid()  # a Ctrl-C at the launcher's terminal must not reach the agents by itself
    die_with_parent(int(parent))
    adopt_orphans()
    link = socket.socket(fileno=int(descriptor))
    server = AgentForkServer(link, agent_main)
    began = time.monotonic()
    try:
        if preload:
            named(preload)(Path(script))
        named(agent_main)
    except Exception as error:  # noqa: BLE001 - told to the launcher, which shows it
        traceback.print_exc()
        server.send(op="unfit", reason=f"{type(error).__name__}: {error}")
        return 1
    freeze()
    threads = len(list(Path("/proc/self/task").iterdir()))
    server.send(op="ready", seconds=time.monotonic() - began, threads=threads)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        server.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
