"""How a job that was stopped, or was given up, is made runnable again.

Its next generation begins with nobody in it: the root that comes waits for as many machines as the
job has, as at its start, and they load what there is. Generations go on counting.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.store_keys import plan_key, spec_key
from castor_policy.store import Compare, Delete, Put, Txn


def resumed(spec: JobSpec, plan: Plan) -> tuple[JobSpec, Plan]:
    """Return the job and the plan to go on with.

    Args:
        spec: the job.
        plan: STOPPED or FAILED. What is complete in memory is kept of the latter alone, and the
            agents that hold it are waited for.
    """
    nobody = ("",) * spec.machines
    kept = plan.phase == Phase.FAILED
    following = Plan(
        generation=plan.generation + 1,
        term=plan.term,
        phase=Phase.GATHER,
        agents=nobody,
        incarnations=nobody,
        reason="resumed",
        reached=plan.reached,
        trained=plan.trained,
        asked_for=True,
    )
    return replace(spec, resumes=plan.generation if kept else 0), following


def resume(spec: JobSpec, plan: Plan, revision: int, wishes: Iterable[str]) -> Txn:
    """Write what `resumed` returned, if the plan is still the one that it was made from.

    Args:
        spec: the job.
        plan: its next one.
        revision: of the last change of the plan that stands.
        wishes: keys of what was asked for before: done, or of the past.
    """
    key = plan_key(spec.job)
    return Txn(
        (Compare(key, mod_revision=revision),),
        (
            Put(spec_key(spec.job), spec.to_json()),
            Put(key, plan.to_json()),
            *(Delete(wish) for wish in wishes),
        ),
    )
