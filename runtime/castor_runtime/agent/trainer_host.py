"""Who runs an agent's trainers, as the agent knows it.

In a job that is a fork server (`TrainerForkLink`); the tests of the agent's heart run the trainers
as threads of their own process.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from castor_runtime.agent.script_files import ScriptFiles


class TrainerHost(Protocol):
    """Starts and kills what trains on one machine, and whatever else it is asked to run."""

    @property
    def pid(self) -> int:
        """Its process."""
        ...

    def preload(self, files: ScriptFiles, tiers: Sequence[str]) -> None:
        """Have these files at hand, what the script imports, and what writing to `tiers` takes.

        Starts are quick from then on.
        """
        ...

    async def wait_ready(self) -> object:
        """Wait until it can start something.

        Raises:
            ForkServerError: it never will.
        """
        ...

    async def start_trainer(
        self,
        rank: int,
        script: str,
        arguments: tuple[str, ...],
        environment: Mapping[str, str],
        log: Path,
    ) -> int:
        """Start a trainer and return its process id; `wait_end` waits for its end.

        Raises:
            ForkServerError: it cannot start anything any more.
        """
        ...

    async def start_call(
        self, name: str, function: str, arguments: Mapping[str, Any], log: Path
    ) -> int:
        """Start what calls `function` ("module:name"), and return its process id.

        Raises:
            ForkServerError: it cannot start anything any more.
        """
        ...

    async def wait_end(self, pid: int) -> int:
        """Wait for the end of what was started and return its code; negative: the signal."""
        ...

    async def kill_all(self, keep: Collection[int] = ()) -> None:
        """Kill all that was started, but for the processes `keep`; it writes nothing after that."""
        ...
