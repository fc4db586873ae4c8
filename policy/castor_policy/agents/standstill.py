"""Who did not come: the ranks of a job that stands still are compared, over all machines.

Whose timer ran out first says nothing: all ranks fall silent at once when one does not come to a
collective. How far each has come says it: the others have begun a collective that it has not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from castor_policy.agents.agent_report import AgentReport, State
from castor_policy.agents.job_spec import JobSpec

_PHASES = ("before its Checkpointer", "starting", "loading")


@dataclass(frozen=True, slots=True)
class Standstill:
    """A job none of whose trainers goes on.

    Attributes:
        ranks: those that the others wait for; empty where none is behind.
        reason: what is known, in words.
    """

    ranks: tuple[int, ...]
    reason: str


def standstill(spec: JobSpec, reports: Sequence[AgentReport]) -> Standstill | None:
    """Return why the job stands still; None while any machine's trainers may go on.

    A machine on which a trainer computes, or says that it is busy, is waited for by all the others:
    one that goes on is enough for the job to be alive.

    Args:
        spec: the job.
        reports: of every machine, in the plan's generation.
    """
    if len(reports) < spec.machines:
        return None
    standing = [report for report in reports if report.standing]
    if not standing or any(
        not report.standing and report.state != State.FINISHED for report in reports
    ):
        return None
    positions = {
        int(rank): tuple(position)
        for report in standing
        for rank, position in report.standing.items()
    }
    least, most = min(positions.values()), max(positions.values())
    if least == most:
        return Standstill((), f"no rank goes on, and none is behind the others: {_where(least)}")
    behind = tuple(sorted(rank for rank, position in positions.items() if position == least))
    if 2 * len(behind) > len(positions):
        # Most wait for something that a few have: those few are ahead, nobody is missing.
        ahead = sorted(rank for rank, position in positions.items() if position == most)
        return Standstill(
            (),
            f"no rank goes on: ranks {_list(behind)} {_where(least)}, "
            f"ranks {_list(ahead)} {_where(most)}",
        )
    named = f"rank {behind[0]} does" if len(behind) == 1 else f"ranks {_list(behind)} do"
    return Standstill(
        behind, f"{named} not go on: {_where(least)}, the farthest rank {_where(most)}"
    )


def _where(position: Sequence[int]) -> str:
    phase, iteration, collectives = position
    if phase < len(_PHASES):
        return f"is {_PHASES[phase]}"
    return f"stands after iteration {iteration} and collective {collectives}"


def _list(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))
