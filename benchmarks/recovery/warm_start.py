"""torchrun's part, but with Castor's fork server: ranks are forked from a process that has
everything imported. It sets the difference in checkpointing apart from that in restarting.

    python benchmarks/recovery/warm_start.py RANKS LOG_DIR SCRIPT [ARGUMENT...]

When a rank dies, all are killed and started anew, on a new port.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

from castor_runtime.agent.script_files import read_script
from castor_runtime.agent.trainer_fork_server import fork_trainer_server


class Ranks:
    """The ranks of one job and the host that they are forked from."""

    def __init__(self, world: int, folder: Path, script: str, arguments: list[str]) -> None:
        self._world, self._folder = world, folder
        self._script, self._arguments = script, arguments
        _, self._link = fork_trainer_server()
        self._messages = self._link.makefile("rb")
        self._pids: dict[int, int] = {}

    def serve(self) -> int:
        """Train, through any number of failures, until all ranks have ended well."""
        self._until("ready")
        sources = read_script(Path(self._script)).sources
        held = {path: b64encode(source).decode() for path, source in sources.items()}
        self._send(op="preload", script=self._script, sources=held, tiers=[])
        while True:
            self._start()
            if all(code == 0 for code in self._wait()):
                return 0

    def _start(self) -> None:
        port = _free_port()
        for rank in range(self._world):
            self._send(
                op="start",
                name=f"rank {rank}",
                script=self._script,
                arguments=self._arguments,
                environment={
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(self._world),
                    "LOCAL_WORLD_SIZE": str(self._world),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                },
                log=str(self._folder / f"rank-{rank}.log"),
            )
        for _ in range(self._world):
            message = self._until("started")
            self._pids[message["pid"]] = int(message["name"].removeprefix("rank "))

    def _wait(self) -> list[int]:
        """Return the ranks' exit codes; the first that fails takes all with it."""
        codes: list[int] = []
        while self._pids:
            message = self._until("ended")
            self._pids.pop(message["pid"], None)
            codes.append(message["code"])
            if message["code"]:
                for pid in self._pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        return codes

    def _send(self, **message: Any) -> None:
        self._link.sendall(json.dumps(message).encode() + b"\n")

    def _until(self, op: str) -> dict[str, Any]:
        for line in self._messages:
            message: dict[str, Any] = json.loads(line)
            if message["op"] == op:
                return message
        raise SystemExit("the fork server is gone")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(Ranks(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:]).serve())
