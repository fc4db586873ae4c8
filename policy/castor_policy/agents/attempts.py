"""When a job is given up: what counts as progress, and which errors only recur.

An attempt is a generation that completed no iteration: one whose replicas have all arrived. An
iteration that ended, but whose checkpoint failed, is done again and may fail again, for ever.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.evidence import Culprit, SightKind
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Phase, Plan

_VARYING = re.compile(
    r"0x[0-9a-fA-F]+"  # addresses in memory
    r"|\b[0-9a-fA-F]{8,}\b"
    r"|\d+(?:[.:]\d+)*"  # ranks, ports, times, dates, host addresses
)

_WORDS_LENGTH = 1000


def moved_on(plan: Plan, reports: Sequence[AgentReport], words: str) -> bool:
    """Whether the generation of `plan` completed an iteration that the job did not have.

    An error that comes again in the same words before the job is farther than it ever was has only
    been repeated, even where the job had gone back to an older checkpoint meanwhile.

    Args:
        plan: of the generation that failed.
        reports: of its machines.
        words: what the failure said, see `recurring_words`.
    """
    complete = furthest(reports)
    repeated = words and words == plan.words and complete <= plan.reached
    return complete > plan.iteration and not repeated


def counted(spec: JobSpec, plan: Plan, chosen: Plan) -> Plan:
    """Return the plan to load with the attempts before it, or the end if they were too many.

    An iteration that is whole in memory was completed, even if the trainers died before any of them
    had said so: a job is given up only once that is known.

    Args:
        spec: the job.
        plan: in phase GATHER.
        chosen: what follows it, in phase LOAD.
    """
    if plan.generation > 1 and chosen.iteration > plan.reached:
        return replace(chosen, attempts=0, reached=chosen.iteration)
    if plan.attempts <= spec.recovery.max_attempts:
        return chosen
    recoveries = "recovery" if plan.attempts == 2 else "recoveries"
    in_vain = f"{plan.attempts - 1} {recoveries} in a row completed no iteration"
    reason = f"{in_vain if plan.attempts > 1 else 'no iteration was completed'}: {plan.reason}"
    return replace(plan, phase=Phase.FAILED, reason=reason)


def furthest(reports: Sequence[AgentReport]) -> int:
    """Return the newest iteration that any of the reports knows to be complete."""
    return max((report.complete for report in reports), default=0)


def recurring_words(culprits: Sequence[Culprit]) -> str:
    """Return what an error said, such that it is equal if it comes again; "" if it said nothing.

    Only trainers' own errors have words. Addresses, ranks, ports and times are left out.
    """
    own = [one for one in culprits if one.kind == SightKind.EXIT]
    said = sorted({_VARYING.sub("#", one.words or _without_rank(one)) for one in own})
    return "; ".join(said)[:_WORDS_LENGTH]


def recurs_at_start(plan: Plan, reports: Sequence[AgentReport], words: str) -> bool:
    """Whether an error came twice in the same words and no iteration ever ended: it will again."""
    return bool(words) and words == plan.words and not has_trained(plan, reports)


def has_trained(plan: Plan, reports: Sequence[AgentReport]) -> bool:
    """Whether an iteration has ended by now, whether or not those are left that could say so."""
    return plan.trained or plan.iteration > 0 or any(report.iteration for report in reports)


def _without_rank(culprit: Culprit) -> str:
    return culprit.cause.removeprefix(f"rank {culprit.rank} ")
