"""What follows a failure: the next generation, or the end of the job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.attempts import (
    furthest,
    has_trained,
    moved_on,
    recurring_words,
    recurs_at_start,
)
from castor_policy.agents.culprit import MOST_NAMED, Verdict, detected
from castor_policy.agents.effects import Log
from castor_policy.agents.evidence import GONE, SightKind
from castor_policy.agents.fitness import remembered, unfit, unserved
from castor_policy.agents.history import (
    ASIDE_FREE_OF_CHARGE,
    SetAside,
    aside_now,
    forgiven,
    often_failed,
)
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Phase, Plan
from castor_records.events import failures


def following(
    spec: JobSpec,
    plan: Plan,
    verdict: Verdict,
    current: Sequence[AgentReport],
    live: Mapping[str, str],
    at_s: float,
    *,
    is_replaceable: bool,
) -> tuple[Plan, list[Log]]:
    """Return the plan that follows the failure of a generation, and what is told of it.

    Places of machines that are put aside are empty in it; those of lost machines are not yet.

    Args:
        spec: the job.
        plan: of the generation that failed.
        verdict: on it.
        current: reports of its machines in this generation.
        live: of each live agent its incarnation.
        at_s: seconds from the job's start, by the clock on the wall.
        is_replaceable: an agent is free to fill a place.
    """
    words = recurring_words(verdict.culprits)
    progress = moved_on(plan, current, words)
    poor = unfit(spec, plan, verdict, current, words, is_replaceable=is_replaceable)
    aside = aside_now(plan.aside, live)
    spared = poor and len(aside) < ASIDE_FREE_OF_CHARGE
    history = remembered(
        spec, plan.failures, [one for one in verdict.culprits if one.machine not in poor], at_s
    )
    following = Plan(
        generation=plan.generation + 1,
        term=plan.term,
        phase=Phase.GATHER,
        agents=plan.agents,
        incarnations=plan.incarnations,
        reason=verdict.reason,
        attempts=0 if progress else plan.attempts + (0 if spared else 1),
        script=plan.script,
        thorough=any(one.kind == SightKind.CORRUPT for one in verdict.culprits),
        culprits=verdict.culprits[:MOST_NAMED],
        seen=verdict.others[:MOST_NAMED],
        words=words,
        reached=max(plan.reached, plan.iteration, furthest(current)),
        trained=has_trained(plan, current),
        failures=history,
        aside=aside,
        fresh=() if progress else plan.fresh,
        loaded=plan.agents if plan.phase == Phase.LOAD else plan.loaded,
        unserved=unserved(plan, current),
    )
    # Of a lost machine it is told where its place is filled.
    told = [
        detected(following.generation, one, following.seen)
        for one in following.culprits or (None,)
        if one is None or one.kind not in GONE
    ]
    for machine, reason in sorted(poor.items()):
        following, log = put_aside(following, machine, reason)
        told.append(log)
    if not is_replaceable:
        told += _kept(spec, plan, following)
    reason = "" if poor else _end(plan, following, verdict, current)
    if reason:
        following = replace(following, phase=Phase.FAILED, generation=plan.generation)
        following = replace(following, reason=reason)
    return following, told


def put_aside(plan: Plan, machine: int, reason: str) -> tuple[Plan, Log]:
    """Return the plan with this machine's place empty, and what is told of it."""
    name = plan.agents[machine]
    emptied = replace(
        plan,
        agents=_without(plan.agents, machine),
        incarnations=_without(plan.incarnations, machine),
        failures=forgiven(plan.failures, name),
        aside=(*plan.aside, SetAside(name, plan.incarnations[machine], reason)),
    )
    return emptied, _set_aside(plan, machine, reason, stays=False)


def _kept(spec: JobSpec, before: Plan, plan: Plan) -> list[Log]:
    """Return what is told of machines that fail too often, while nobody can take their place."""
    told = []
    for machine, name in enumerate(plan.agents):
        reason = often_failed(plan.failures, name, spec.recovery.set_aside_after)
        if reason and reason != often_failed(before.failures, name, spec.recovery.set_aside_after):
            told.append(_set_aside(plan, machine, reason, stays=True))
    return told


def _set_aside(plan: Plan, machine: int, reason: str, *, stays: bool) -> Log:
    return Log(
        failures.SetAside(
            generation=plan.generation,
            machine=machine,
            agent=plan.agents[machine],
            reason=reason,
            stays=stays,
        )
    )


def _end(plan: Plan, following: Plan, verdict: Verdict, current: Sequence[AgentReport]) -> str:
    """Return why the job ends with this failure; "" if it goes on, or may.

    Whether it has had its attempts is known only once all have said what they hold (`counted`).
    """
    if any(one.kind == SightKind.MEMORY for one in verdict.culprits):
        return verdict.reason
    if recurs_at_start(plan, current, following.words):
        return f"the same error twice before the first iteration: {verdict.reason}"
    return ""


def _without(names: Sequence[str], machine: int) -> tuple[str, ...]:
    return tuple("" if place == machine else name for place, name in enumerate(names))
