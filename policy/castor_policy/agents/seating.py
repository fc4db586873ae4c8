"""Which agent fills which machine: who holds the machine's parts already, then whoever is free.

What an agent found in its memory when it was started stands in its report while it is idle. A job
that goes on after all its agents have ended finds its parts again by that, whatever the agents'
names and order, and an empty machine is better filled by one that has kept its parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.job_spec import JobSpec


def seats(
    spec: JobSpec, free: Sequence[AgentReport], empty: Sequence[int]
) -> dict[int, AgentReport]:
    """Return who fills each of the `empty` machines, as far as there are agents.

    Args:
        spec: the job.
        free: agents that fill no machine, the preferred ones first.
        empty: machines that nobody fills, in the order in which they shall be filled.
    """
    left = list(free)
    found: dict[int, AgentReport] = {}
    claims = [
        (-_held(spec, report, machine), order, place, machine)
        for order, machine in enumerate(empty)
        for place, report in enumerate(left)
    ]
    for held, _, place, machine in sorted(claims):
        report = free[place]
        if held < 0 and machine not in found and report in left:
            found[machine] = report
            left.remove(report)
    for machine in empty:
        if machine not in found and left:
            found[machine] = left.pop(0)
    return dict(sorted(found.items()))


def kept_iteration(spec: JobSpec, reports: Sequence[AgentReport]) -> int:
    """Return the newest iteration of which idle agents hold every rank's part; 0 if there is none.

    Whether replicas can be fetched from where they are is decided later, on what is inspected.
    """
    whole: set[int] | None = None
    for rank in range(spec.machines * spec.ranks_per_machine):
        held = {i for report in reports for i in _left(report).get(str(rank), ())}
        whole = held if whole is None else whole & held
    return max(whole or (), default=0)


def holds_parts(report: AgentReport) -> bool:
    """Whether an idle agent holds complete parts that an earlier life has left."""
    return any(_left(report).values())


def _left(report: AgentReport) -> Mapping[str, tuple[int, ...]]:
    return report.holdings if report.state == State.IDLE else {}


def _held(spec: JobSpec, report: AgentReport, machine: int) -> int:
    """Return how many of the machine's parts the agent holds; its own ranks' count double."""
    own = spec.ranks_of(machine)
    held = _left(report)
    return sum(1 + (rank in own) for rank in spec.ranks_held_by(machine) if held.get(str(rank)))
