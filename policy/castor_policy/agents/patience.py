"""How long the root waits for a machine, and which machines it has stopped waiting for.

A machine whose agent renews its lease and yet never answers (its trainers cannot be killed, its
storage or its memory hangs, its agent is stuck) would hold the job for ever. After a bound it is
treated as lost: its place goes to a standby, what its memory holds stays where it is, and it may
fill a place again once it speaks.
"""

from __future__ import annotations

from collections.abc import Mapping

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.gathering import Awaited

LONGEST_GAP_S = 1.0
"""The most that one look adds to what was waited: a root that was stopped itself has not waited."""


class Patience:
    """Since when the root of one term waits for whom, by time that it has watched."""

    def __init__(self) -> None:
        self._waited_s: dict[Awaited, float] = {}
        self._at_s: float | None = None
        self._silent: dict[tuple[str, str], AgentReport] = {}

    def wait(self, now_s: float, limits_s: Mapping[Awaited, float]) -> list[Awaited]:
        """Wait for these, and for nobody else any more; return those that are overdue.

        Args:
            now_s: the root's clock.
            limits_s: for each that is waited for, how long it may take.
        """
        passed_s = 0.0 if self._at_s is None else min(now_s - self._at_s, LONGEST_GAP_S)
        self._at_s = now_s
        self._waited_s = {
            what: self._waited_s[what] + passed_s if what in self._waited_s else 0.0
            for what in limits_s
        }
        return [what for what, limit_s in limits_s.items() if self._waited_s[what] >= limit_s]

    def give_up(self, report: AgentReport) -> None:
        """Take this agent for lost until it says something else than this."""
        self._silent[report.agent, report.incarnation] = report

    def is_given_up(self, report: AgentReport) -> bool:
        """Whether the agent was given up, and has said nothing new since."""
        return self._silent.get((report.agent, report.incarnation)) == report
