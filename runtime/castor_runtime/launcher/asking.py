"""What a job's user asks for from anywhere that reaches its store: stop, resume, drain.

Its root does it (`castor_policy.agents.wishes`); here it is asked for, and followed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from castor_configs.errors import InputError
from castor_policy.agents import store_writes
from castor_policy.agents.exit_codes import FINISHED, GIVEN_UP
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.resuming import resume as resume_txn
from castor_policy.agents.resuming import resumed
from castor_policy.agents.store_keys import plan_key
from castor_policy.agents.wish import Wish, WishKind
from castor_policy.agents.wish_progress import progress
from castor_policy.agents.wishes import STOPPED_AT, refused_drain, refused_stop
from castor_policy.store import Delete, Store, Txn
from castor_runtime.launcher.job_view import JobView, read_job

LOOK_EVERY_S = 0.5
ENDING_S = 15.0
"""Agents of a job that was stopped are gone so long after, and their leases with them."""

Say = Callable[[str], None]


async def stop(store: Store, job: str, *, checkpoint: bool, waits: bool, say: Say) -> int:
    """Ask for a job's end, and follow it there; return the command's exit code.

    Args:
        store: of the job.
        job: its name.
        checkpoint: at an iteration that lies in the persistent tier.
        waits: until it has ended; else only ask.
        say: told in a line how far it is.

    Raises:
        InputError: there is no such job, or it cannot stop so.
        StoreUnavailableError: the store does not answer.
    """
    view, spec = await read_job(store, job)
    if checkpoint and (why := refused_stop(spec)):
        raise InputError(why, key="--checkpoint")
    if view.plan is not None and view.plan.is_over:
        return _ended(spec, view.plan, say)
    kind = WishKind.CHECKPOINT if checkpoint else WishKind.STOP
    wish = Wish(kind, since_ns=time.time_ns())
    await store.transact(store_writes.wish(job, wish))
    if not view.reports:
        say(f"no agent of job {job} is alive: it stops as soon as one comes")
        return FINISHED
    told = ""
    while waits:
        await asyncio.sleep(LOOK_EVERY_S)
        view, spec = await read_job(store, job)
        if view.plan is not None and view.plan.is_over:
            return _ended(spec, view.plan, say)
        if wish.key(job) not in view.wishes:
            say("it was taken back: the job goes on")
            return GIVEN_UP
        told = _said(view, spec, wish, told, say)
    return FINISHED


async def drain(store: Store, job: str, agent: str, *, waits: bool, say: Say) -> int:
    """Ask that a machine be drained, and follow it there; return the command's exit code.

    Args:
        store: of the job.
        job: its name.
        agent: of the machine.
        waits: until it has left; else only ask.
        say: told in a line how far it is.

    Raises:
        InputError: there is no such job or agent, or none of it can be drained.
        StoreUnavailableError: the store does not answer.
    """
    view, spec = await read_job(store, job)
    report = view.reports.get(agent)
    if report is None:
        alive = ", ".join(sorted(view.reports)) or "none"
        raise InputError(f"job {job} has no living agent {agent!r}: {alive} are alive", key="NODE")
    if why := refused_drain(spec):
        raise InputError(why, key="NODE")
    wish = Wish(WishKind.DRAIN, agent, report.incarnation, time.time_ns())
    await store.transact(store_writes.wish(job, wish))
    told = ""
    while waits:
        await asyncio.sleep(LOOK_EVERY_S)
        view, spec = await read_job(store, job)
        plan = view.plan
        if plan is not None and plan.is_over:
            say(f"job {job} has ended meanwhile: {plan.reason}")
            return FINISHED
        if wish.key(job) not in view.wishes:
            is_left = plan is None or plan.machine_of(*wish.life) is None
            say(f"{agent} is drained" if is_left else f"{agent} keeps its place: it was taken back")
            return FINISHED if is_left else GIVEN_UP
        told = _said(view, spec, wish, told, say)
    return FINISHED


async def take_back_drain(store: Store, job: str, agent: str, say: Say) -> None:
    """Take back that a machine be drained.

    Raises:
        InputError: there is no such job, or nobody has asked for that.
        StoreUnavailableError: the store does not answer.
    """
    view, _ = await read_job(store, job)
    key = Wish(WishKind.DRAIN, agent).key(job)
    if key not in view.wishes:
        raise InputError(f"nobody has asked to drain {agent!r} of job {job}", key="NODE")
    await store.transact(Txn((), (Delete(key),)))
    say(f"{agent} is not drained any more")


async def resume(store: Store, job: str, change: Callable[[JobSpec], JobSpec], say: Say) -> None:
    """Make a job that has ended before it had finished runnable again, or take back its stop.

    Args:
        store: of the job.
        job: its name.
        change: returns the job with what is to be different in it from now on.
        say: told what follows.

    Raises:
        InputError: there is no such job, it has finished, or its agents are still there.
        StoreUnavailableError: the store does not answer.
    """
    view, spec = await read_job(store, job)
    stop_key = Wish(WishKind.STOP).key(job)
    if view.plan is None or not view.plan.is_over:
        if stop_key not in view.wishes:
            raise InputError(f"job {job} has not ended: there is nothing to resume", key="JOB")
        await store.transact(Txn((), (Delete(stop_key),)))
        say(f"job {job} goes on: the stop was taken back")
        return
    if view.plan.phase == Phase.FINISHED:
        raise InputError(
            f"job {job} has finished: there is nothing to go on with; to train anew, remove it "
            f"first: castor rm {job}",
            key="JOB",
        )
    give_up_s = time.monotonic() + ENDING_S
    while view.reports:
        if time.monotonic() > give_up_s:
            alive = ", ".join(sorted(view.reports))
            raise InputError(f"agents of job {job} have yet to end: {alive}", key="JOB")
        await asyncio.sleep(LOOK_EVERY_S)
        view, spec = await read_job(store, job)
    found, _ = await store.get_prefix(plan_key(job))
    standing = next((item for item in found if item.key == plan_key(job)), None)
    if standing is None:
        raise InputError(f"the plan of job {job} is gone: its hosts begin it again", key="JOB")
    before = Plan.from_json(standing.value)
    following, plan = resumed(change(spec), before)
    txn = resume_txn(following, plan, standing.mod_revision, view.wishes)
    if not (await store.transact(txn)).succeeded:
        raise InputError(f"job {job} was changed meanwhile: look at it, and try again", key="JOB")
    say(f"job {job} goes on from {_source(spec, before)}, once its hosts are started by their line")


def _said(view: JobView, spec: JobSpec, wish: Wish, told: str, say: Say) -> str:
    """Say how far a wish is, if that is news; return what was said last."""
    now = progress(spec, view.plan, view.reports, wish)
    if now and now != told:
        say(now)
    return now


def _ended(spec: JobSpec, plan: Plan, say: Say) -> int:
    """Say how a job has ended; return the command's exit code."""
    match plan.phase:
        case Phase.FINISHED:
            say(f"job {spec.job} has finished, at iteration {plan.reached}")
            return FINISHED
        case Phase.FAILED:
            say(f"job {spec.job} was given up at iteration {plan.reached}: {plan.reason}")
            return GIVEN_UP
        case _:
            say(f"job {spec.job} is {plan.reason}, iteration {plan.reached}")
            say(f"castor resume {spec.job} makes it go on from {_source(spec, plan)}")
            return FINISHED


def _source(spec: JobSpec, plan: Plan) -> str:
    if plan.phase == Phase.FAILED:
        return "the memory that its hosts keep"
    if plan.reason == STOPPED_AT:
        return f"iteration {plan.reached} in the persistent tier"
    if spec.persistence.tiers:
        return "the newest checkpoint in the persistent tier"
    return "the start: it has no persistent tier"


def changed(
    spec: JobSpec, *, max_attempts: int | None = None, limit_bytes: int | None = None
) -> JobSpec:
    """Return a job with other limits, for whom they have ended.

    Args:
        spec: the job.
        max_attempts: recoveries in a row without progress; None: as before.
        limit_bytes: of checkpoint memory on each machine; None: as before.
    """
    if max_attempts is not None:
        spec = replace(spec, recovery=replace(spec.recovery, max_attempts=max_attempts))
    if limit_bytes is not None:
        spec = replace(spec, memory=replace(spec.memory, limit_bytes=limit_bytes))
    return spec
