"""Who watches whom over a connection of its own, and which machine is lost before its lease ends.

A lease tells that a machine is gone after seconds; the connections of those around it tell in a
fraction of one. Each machine keeps a connection to the next one on either side, in the ring of the
plan's machines, and past those that are gone to the one behind them. The kernel at the other end
acknowledges what is sent, however loaded or paused the agent is, so that a machine that is merely
slow is not taken for one that is gone.

1. One agent's word is no evidence: it may be cut off itself. Two must say it; and who is said to be
   gone by as many as the machine it speaks of does not count. Where there are fewer than three
   machines, the spares watch them too.
2. Nothing is decided early unless there are agents for all places that are then empty: a swap costs
   little, a job that waits for a machine which was there costs much. Without them the lease counts.
3. Nor is it where a shard would have no replica left. An agent that died alone comes back, within
   its lease, to memory that is whole: a group whose agents are restarted at once must not lose it.
4. A machine that was merely cut off finds its place given away in the next plan, and is a spare.
5. Who is root is watched as any machine is; those who lost it take the office from its term, on the
   same evidence.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.history import is_aside
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Phase, Plan

WITNESSES = 2
"""So many agents must have lost a machine."""

_MOST_BEYOND = 8
"""No further on either side: a row of machines that are gone is rarely longer."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One life of an agent that is watched.

    Attributes:
        agent: its name.
        incarnation: which life of it.
        address: of its checkpoint server, host:port.
    """

    agent: str
    incarnation: str
    address: str


class Neighbours:
    """Whom one agent watches, and whom of them it has lost."""

    def __init__(self) -> None:
        self._around: tuple[Neighbour, ...] = ()
        self._gone: set[str] = set()

    def follow(self, plan: Plan, machine: int | None) -> None:
        """Watch the machines of a plan that loads, seen from this one.

        Args:
            plan: in phase LOAD.
            machine: where this one stands in it; None: it is a spare.
        """
        everybody = [
            Neighbour(*one)
            for one in zip(plan.agents, plan.incarnations, plan.addresses, strict=False)
        ]
        if machine is not None:
            self._around = (*everybody[machine + 1 :], *everybody[:machine])
        else:
            self._around = tuple(everybody) if len(everybody) <= WITNESSES else ()
        self._gone &= {one.incarnation for one in self._around}

    def leave(self) -> None:
        """Watch nobody: this machine has no place any more."""
        self._around = ()
        self._gone.clear()

    def lost(self, incarnation: str) -> bool:
        """Take in that this one cannot be reached; return whether that is new."""
        known = {one.incarnation for one in self._around}
        is_new = incarnation in known - self._gone
        if is_new:
            self._gone.add(incarnation)
        return is_new

    def found(self, incarnation: str) -> bool:
        """Take in that this one can be reached again; return whether that is new."""
        is_new = incarnation in self._gone
        self._gone.discard(incarnation)
        # Behind it nobody is watched any more: of those nothing is known.
        self._gone &= {one.incarnation for one in self.watched}
        return is_new

    @property
    def watched(self) -> tuple[Neighbour, ...]:
        """Those to whom a connection is kept, or tried for."""
        found = dict.fromkeys((*self._side(self._around), *self._side(self._around[::-1])))
        return tuple(found)

    def _side(self, order: Iterable[Neighbour]) -> list[Neighbour]:
        side: list[Neighbour] = []
        for one in order:
            side.append(one)
            if one.incarnation not in self._gone or len(side) > _MOST_BEYOND:
                break
        return side

    @property
    def unreached(self) -> tuple[str, ...]:
        """The incarnations that cannot be reached."""
        return tuple(sorted(self._gone))

    def has_lost(self, agent: str) -> bool:
        """Whether an agent of this name is one of them."""
        return any(one.agent == agent and one.incarnation in self._gone for one in self._around)


def lost_early(
    spec: JobSpec,
    plan: Plan,
    reports: Mapping[str, AgentReport],
    empty: Iterable[int],
    takers: int,
) -> tuple[int, ...]:
    """Return the machines of a plan that others have lost, as far as rules 2 and 3 allow.

    Args:
        spec: the job.
        plan: the newest.
        reports: by agent, as the store has them.
        empty: machines of the plan that are lost anyhow.
        takers: how many agents may take a place.
    """
    machine_of = {name: machine for machine, name in enumerate(plan.incarnations) if name}
    said: dict[int, set[str]] = {}
    for agent, report in reports.items():
        if report.unreached and (agent not in plan.agents or report.incarnation in machine_of):
            for name in machine_of.keys() & set(report.unreached):
                said.setdefault(machine_of[name], set()).add(report.incarnation)

    def doubts(witness: str) -> int:
        """Return how many say of a witness itself that it is gone."""
        return len(said.get(machine_of.get(witness, -1), ()))

    lost = tuple(
        machine
        for machine, by in sorted(said.items())
        if sum(doubts(witness) < len(by) for witness in by) >= WITNESSES
    )
    gone = {*lost, *empty}
    return lost if takers >= len(gone) and _keep_each_shard(spec, plan, reports, gone) else ()


def _keep_each_shard(
    spec: JobSpec, plan: Plan, reports: Mapping[str, AgentReport], gone: Collection[int]
) -> bool:
    """Whether machines that are not gone are known to hold each shard."""

    def holds(machine: int, shard: int) -> bool:
        report = reports.get(plan.agents[machine])
        if report is None or report.incarnation != plan.incarnations[machine]:
            return False
        if plan.phase == Phase.LOAD and plan.sources and machine in plan.sources[shard]:
            return True
        if report.generation != plan.generation:
            return False
        return report.redundant or all(str(r) in report.holdings for r in spec.ranks_of(shard))

    return all(
        any(machine not in gone and holds(machine, shard) for machine in row)
        for shard, row in enumerate(spec.replicas)
    )


def may_be_deposed(
    spec: JobSpec, plan: Plan | None, reports: Mapping[str, AgentReport], root: str
) -> bool:
    """Whether the root's machine counts as lost by what all agents say.

    Args:
        spec: the job.
        plan: the newest that is known.
        reports: of all agents, by name.
        root: the agent in office.
    """
    if plan is None or root not in plan.agents:
        return False
    empty = [machine for machine, name in enumerate(plan.agents) if name not in reports]
    takers = sum(
        name not in plan.agents and not is_aside(plan.aside, name, report.incarnation)
        for name, report in reports.items()
    )
    return plan.agents.index(root) in lost_early(spec, plan, reports, empty, takers)
