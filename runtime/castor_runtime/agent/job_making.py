"""The first agent that comes makes the job; the others, and its own next lives, join it."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable
from dataclasses import replace

from castor_configs.errors import InputError
from castor_policy.agents.exit_codes import DO_NOT_REQUEUE, FINISHED
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.same_job import differences
from castor_policy.agents.store_keys import job_prefix, plan_key, spec_key
from castor_policy.store import Compare, Put, Store, StoreUnavailableError, Txn
from castor_records.events.failures import RunStarted
from castor_runtime.arena.removal import remove_run
from castor_runtime.transport import Credentials, JobSecret


def new_job(given: JobSpec, credentials: Credentials) -> JobSpec:
    """Return a job as this host would make it, with a run of its own.

    Args:
        given: as it was given on this host.
        credentials: of its agents.
    """
    mark = credentials.mark() if isinstance(credentials, JobSecret) else ""
    return replace(given, run=secrets.token_hex(8), started_ns=time.time_ns(), credentials=mark)


def run_started(spec: JobSpec, compute: str | None = None) -> RunStarted:
    """Return the event that begins the log of a new run.

    Args:
        spec: the job.
        compute: "paced" if waits stand for a GPU's work, else "real"; None: it is not known.
    """
    return RunStarted(
        machines=spec.machines,
        ranks=spec.machines * spec.ranks_per_machine,
        replicas=len(spec.replicas[0]),
        placement=spec.placement,
        compute=compute,
    )


async def make_or_join(store: Store, own: JobSpec, say: Callable[[str], None]) -> JobSpec | int:
    """Return the job as it stands in the store, made by this host if it was not there.

    May be repeated where the store did not answer, with the same `own`.

    Args:
        store: where it is.
        own: from `new_job`.
        say: told in a line which it was.

    Returns:
        The job; the exit code of an agent that has nothing to do, as the job has finished, or was
        stopped by its user.

    Raises:
        InputError: the store has another job of that name.
        StoreUnavailableError: the store does not answer.
    """
    key = spec_key(own.job)
    await store.transact(Txn((Compare(key, 0),), (Put(key, own.to_json()),)))
    keys, _ = await store.get_prefix(job_prefix(own.job))
    found = {item.key: item.value for item in keys}
    if key not in found:
        raise StoreUnavailableError(f"job {own.job!r} was removed as it was joined")
    try:
        made = JobSpec.from_json(found[key])
    except ValueError as error:
        raise InputError(f"the store's job {own.job!r}: {error}", key="--job") from error
    if made.run == own.run:
        say(f"made job {own.job}: {own.machines} machines begin it, more are spares")
        return made
    if apart := differences(own, made):
        raise InputError(
            f"the store has another job {own.job!r}: {'; '.join(apart)}. Start every host by the "
            f"same line, choose another name, or remove that job: castor rm {own.job}",
            key="--job",
        )
    plan = _plan(found.get(plan_key(own.job)))
    if plan is not None and plan.phase == Phase.FINISHED:
        # An agent of it may have died here, and the job ended without it.
        remove_run(own.job, made.run)
        say(f"job {own.job} has finished; to train anew, remove it first: castor rm {own.job}")
        return FINISHED
    if plan is not None and plan.phase == Phase.STOPPED:
        say(f"job {own.job} is {plan.reason}; to go on, castor resume {own.job} first")
        return DO_NOT_REQUEUE
    say(f"joins job {own.job}, run {made.run}")
    return made


def _plan(text: str | None) -> Plan | None:
    """Return the plan; one that cannot be read is for the root to mend."""
    with contextlib.suppress(ValueError):
        return None if text is None else Plan.from_json(text)
    return None
