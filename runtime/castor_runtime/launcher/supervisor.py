"""The local operator: starts emulated machines, restarts agents that died alone, adds spares."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import Final

from castor_policy.agents.exit_codes import SETTLED
from castor_runtime.agent.options import AgentOptions
from castor_runtime.fork_server_link import ForkServerError
from castor_runtime.launcher.agent_fork_link import AgentExit, AgentForkLink

RESTART_AFTER_S: Final = 0.2
RESTARTS_IN_A_ROW: Final = 5
"""Of one agent, without a new iteration of the job, before it is given up."""


class Fate(Enum):
    """What is done about an agent whose process has ended."""

    ENDED = "ended"
    """It ended by itself: the job is over, one way or the other."""
    RESTART = "restart"
    """It died alone: the same machine starts it again."""
    LOST = "lost"
    """Its machine is gone; only the root may have another one take its place."""
    GIVEN_UP = "given up"
    """It died too often in a row."""


class RestartRule:
    """Decides what is done about an agent's end; pure."""

    def __init__(self) -> None:
        self.doomed: set[str] = set()
        self._in_a_row: dict[str, int] = {}

    def progressed(self) -> None:
        """The job has finished a new iteration: whatever was restarted works."""
        self._in_a_row.clear()

    def fate(self, name: str, code: int) -> Fate:
        """Say what to do about agent `name`, which ended with `code` (negative: a signal)."""
        if name in self.doomed:
            return Fate.LOST
        if code in SETTLED:
            return Fate.ENDED
        count = self._in_a_row[name] = self._in_a_row.get(name, 0) + 1
        return Fate.GIVEN_UP if count > RESTARTS_IN_A_ROW else Fate.RESTART


class Supervisor:
    """Keeps the emulated machines of one run.

    Args:
        forks: where agents are forked.
        options_for: what an agent is started with: (name, standby).
        say: told in a line what happens.
    """

    def __init__(
        self,
        forks: AgentForkLink,
        options_for: Callable[[str, bool], AgentOptions],
        say: Callable[[str], None],
    ) -> None:
        self._forks = forks
        self._options_for = options_for
        self._say = say
        self._rule = RestartRule()
        self._standby: dict[str, bool] = {}
        self._spares = 0
        self._restarts: dict[str, asyncio.Task[None]] = {}
        self._strangers: dict[str, asyncio.Future[int]] = {}
        self.codes: dict[str, int] = {}
        """Exit codes of agents that ended by themselves."""
        self.given_up: list[str] = []

    @property
    def idle(self) -> bool:
        """No agent runs, and none is about to."""
        return self._forks.is_empty and not self._restarts

    def doom(self, name: str) -> None:
        """The machine of `name` is about to die: it must stay dead."""
        self._rule.doomed.add(name)

    def progressed(self) -> None:
        """The job has finished a new iteration."""
        self._rule.progressed()

    async def start(self, name: str, *, standby: bool = False) -> None:
        """Start an agent.

        Raises:
            ForkServerError: agents cannot be started any more.
        """
        self._standby[name] = standby
        await self._forks.start(self._options_for(name, standby))

    async def provide(self) -> str:
        """Start one more emulated machine as a standby, and return its agent's name.

        What the operator `local:` calls.

        Raises:
            ForkServerError: agents cannot be started any more.
        """
        while (name := f"spare-{self._spares}") in self._standby:
            self._spares += 1  # a run that goes on has its own already
        self._spares += 1
        await self.start(name, standby=True)
        return name

    async def intrude(self, options: AgentOptions, label: str) -> int:
        """Start an agent that nobody asked for, and return its exit code once it has ended.

        It is not this supervisor's to keep: it may bear another agent's name.

        Raises:
            ForkServerError: agents cannot be started any more.
        """
        self._strangers[label] = asyncio.get_running_loop().create_future()
        await self._forks.start(options, label=label)
        return await self._strangers[label]

    def exited(self, end: AgentExit) -> None:
        """Take the end of an agent's process in."""
        if (stranger := self._strangers.get(end.name)) is not None:
            if not stranger.done():
                stranger.set_result(end.code)
            return
        fate = self._rule.fate(end.name, end.code)
        how = f"killed by signal {-end.code}" if end.code < 0 else f"exit code {end.code}"
        match fate:
            case Fate.ENDED:
                self.codes[end.name] = end.code
            case Fate.RESTART:
                self._say(f"agent {end.name} died ({how}); it is restarted")
                self._restarts[end.name] = asyncio.create_task(self._restart(end.name))
            case Fate.LOST:
                self._say(f"machine of agent {end.name} is gone")
            case Fate.GIVEN_UP:
                self.given_up.append(end.name)
                self._say(f"agent {end.name} died {RESTARTS_IN_A_ROW + 1} times in a row ({how})")

    async def close(self) -> None:
        """Start nothing any more."""
        tasks = [self._restarts[name] for name in sorted(self._restarts)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _restart(self, name: str) -> None:
        try:
            await asyncio.sleep(RESTART_AFTER_S)
            if name not in self._rule.doomed:
                await self.start(name, standby=self._standby.get(name, False))
        except ForkServerError as error:
            self._say(str(error))
        finally:
            del self._restarts[name]
