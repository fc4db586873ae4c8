"""What a root does where the store has lost the newest plan, or lost track of the job altogether.

The store may be emptied, or restored from a backup; the agents still know where they were, and no
replica is given up for the store's sake. So:

1. The newest plan that the root knows is written again as it was: training goes on. If it was still
   gathering, the next generation begins.
2. Where a report speaks of a later plan than any that the root knows, that one is lost: the next
   generation after it begins, with the same agents, and no generation is ever used twice.
3. Nobody is taken for dead who has not yet had a lease's time to come back to the new store. A root
   that knows of no plan, and came while the store was away, waits so long for whoever does.
4. A root that knows of no plan, where others have had one, gives up its office to them.
"""

from __future__ import annotations

from collections.abc import Mapping

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.plan import Phase, Plan

LOST = "the store lost the newest plan"
"""Reason of a generation that begins because nobody who decides knows the one before."""


def later(plan: Plan | None, known: Plan | None) -> Plan | None:
    """Return the later of two plans, either of which may be missing."""
    if plan is None or known is None:
        return known if plan is None else plan
    return known if plan.is_before(known) else plan


def newest_generation(reports: Mapping[str, AgentReport]) -> int:
    """Return the newest generation that any agent speaks of; 0 if none has had a plan."""
    return max((known_generation(one) for one in reports.values()), default=0)


def known_generation(report: AgentReport) -> int:
    """Return the newest generation that an agent speaks of; 0 if it has had no plan."""
    return max(report.generation, report.load_seen, report.plan_seen)


def repaired(
    plan: Plan | None,
    known: Plan | None,
    reports: Mapping[str, AgentReport],
    *,
    is_backups: bool = False,
) -> Plan | None:
    """Return the plan to write instead of the one in the store; None if that one is the newest.

    Args:
        plan: as it stands in the store; None if none does.
        known: the newest one that the root has ever seen.
        reports: of the live agents, by name.
        is_backups: `plan` stands there since the store went back to a backup.
    """
    base = later(plan, known)
    if base is None:
        return None
    newest = newest_generation(reports)
    loaded = base.phase == Phase.GATHER and any(
        report.load_seen >= base.generation for report in reports.values()
    )
    # What a gathering came to may be known to others: it is not taken up again, but the next one is
    # begun, so that one generation never loads twice.
    unfinished = base.phase == Phase.GATHER and (is_backups or base is not plan)
    if loaded or unfinished or newest > base.generation:
        return Plan(
            generation=max(newest, base.generation) + 1,
            term=base.term,
            phase=Phase.GATHER,
            agents=base.agents,
            incarnations=base.incarnations,
            reason=LOST,
            attempts=base.attempts,
            words=base.words,
            reached=max(base.reached, base.iteration),
            trained=base.trained,
            failures=base.failures,
            aside=base.aside,
            fresh=base.fresh,
        )
    return None if base is plan else base


def is_awaited(
    base: Plan | None, awaited: Mapping[str, str], reports: Mapping[str, AgentReport]
) -> bool:
    """Whether an agent of the plan has yet to come back to a store that lost its data.

    Args:
        base: the plan.
        awaited: incarnation of each agent that had a report before the loss and has none since.
        reports: of the live agents, by name.
    """
    for name in base.agents if base is not None else ():
        report = reports.get(name)
        if name in awaited and (report is None or report.incarnation != awaited[name]):
            return True
    return False
