"""Whether a run has ended, and how: its plan says so, its agents are gone, or its user ends it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from castor_policy.agents.exit_codes import GIVEN_UP, REFUSED
from castor_runtime.launcher.result_file import Outcome, judge
from castor_runtime.launcher.stored_job import StoredJob
from castor_runtime.launcher.supervisor import Supervisor

GRACE_S: Final = 5.0
"""For the rest of the agents to end, once one has; one that was stopped never will."""


class RunEnd:
    """Looks for the end of one run.

    Args:
        job: as the store has it.
        supervisor: of the agents that the launcher has started.
        log_of: the log of an agent, by its name.
        say: tells a line of what happens.
        is_local: the launcher starts the agents; else whoever else does.
    """

    def __init__(
        self,
        job: StoredJob,
        supervisor: Supervisor,
        log_of: Callable[[str], Path],
        say: Callable[[str], None],
        *,
        is_local: bool,
    ) -> None:
        self._job = job
        self._supervisor = supervisor
        self._log_of = log_of
        self._say = say
        self._is_local = is_local
        self._ended_at_s: float | None = None

    async def look(self) -> Outcome | None:
        """Return how the run ended, once it has: all agents are gone or their time is up."""
        view = self._job.view
        outcome = judge(None if view is None else view.plan, self._supervisor.codes)
        if outcome is None:
            return await self._without_agents() if self._agents_are_gone() else None
        if self._ended_at_s is None:
            self._ended_at_s = time.monotonic()
        late = time.monotonic() - self._ended_at_s > GRACE_S
        # What an agent refused, such as too little memory, the others would wait for in vain.
        over = outcome.code == REFUSED or late or self._agents_are_gone()
        return outcome if over else None

    def _agents_are_gone(self) -> bool:
        if self._is_local:
            return self._supervisor.idle
        view = self._job.view
        return view is not None and view.plan is not None and not view.reports

    async def _without_agents(self) -> Outcome | None:
        """Nobody is left, so nobody can ask for a machine: bring one, unless agents just crash."""
        if not self._is_local:
            return None
        if self._supervisor.given_up:
            name = self._supervisor.given_up[0]
            reason = f"agent {name} died again and again; see {self._log_of(name)}"
            return Outcome("failed", reason, GIVEN_UP)
        name = await self._supervisor.provide()
        self._say(f"no machine is left: starting {name}")
        return None
