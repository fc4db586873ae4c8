"""How long the root waits for a machine, and which machines it has stopped waiting for.

A machine whose agent renews its lease and yet never answers (its trainers cannot be killed, its
storage or its memory hangs, its agent is stuck) would hold the job for ever. After a bound it is
treated as lost: its place goes to a standby, what its memory holds stays where it is, and it may
fill a place again once it speaks. So is one that its neighbours have lost (`neighbours`).
"""

from __future__ import annotations

from collections.abc import Mapping

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.gathering import Awaited
from castor_policy.agents.job_spec import JobSpec

UNREACHED = "unreached"
"""Why a machine is given up that its neighbours have lost."""

LONGEST_GAP_S = 1.0
"""The most that one look adds to what was waited: a root that was stopped itself has not waited."""


def serves(spec: JobSpec, stuck_s: float) -> bool:
    """Whether an agent that has carried out one thing for `stuck_s` seconds still keeps its lease.

    What it waits for may never end; without its lease its place, and its office as root, go to
    others. No machine has longer to gather.
    """
    return stuck_s < spec.recovery.gather_s


class Patience:
    """Since when the root of one term waits for whom, by time that it has watched."""

    def __init__(self) -> None:
        self._waited_s: dict[Awaited, float] = {}
        self._at_s: float | None = None
        self._doubted: set[tuple[str, str]] = set()
        self._given_up: dict[tuple[str, str], tuple[AgentReport, str]] = {}
        """What each that was given up said last, and why it was."""

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

    def give_up(self, report: AgentReport, step: str) -> None:
        """Take this agent for lost until it says something else than this.

        Args:
            report: its newest one.
            step: see `Awaited.step`; or `UNREACHED`.
        """
        life = report.agent, report.incarnation
        if step in ("storage", UNREACHED):
            self._doubted.add(life)
        self._given_up[life] = report, step

    def heard(self, report: AgentReport) -> None:
        """Take in what an agent says, which may not be looked at before it says the next thing."""
        if self._given_up:
            self.is_given_up(report)

    def is_given_up(self, report: AgentReport) -> bool:
        """Whether the agent was given up, and has said nothing new since.

        Args:
            report: its newest one. Once it has said something else, the same counts as new, too.
        """
        life = report.agent, report.incarnation
        said, _ = self._given_up.get(life, (None, ""))
        if said != report:
            self._given_up.pop(life, None)
        return life in self._given_up

    def is_unreached(self, report: AgentReport) -> bool:
        """Whether an agent that was given up was so because its neighbours had lost it."""
        _, why = self._given_up.get((report.agent, report.incarnation), (None, ""))
        return why == UNREACHED

    def is_doubted(self, report: AgentReport) -> bool:
        """Whether the agent was cut off once, or from storage: it may be so the next time."""
        return (report.agent, report.incarnation) in self._doubted
