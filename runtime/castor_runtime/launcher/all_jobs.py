"""All jobs of a store, a line each."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from castor_policy.agents.plan import Phase
from castor_policy.agents.wish import WishKind
from castor_policy.store import Store
from castor_runtime.launcher.job_view import JobView

PREFIX: Final = "/castor/"


async def read_jobs(store: Store) -> list[JobView]:
    """Return all jobs as they stand, by name; what cannot be read is in their `set_aside`.

    Raises:
        StoreUnavailableError: the store does not answer.
    """
    keys, revision = await store.get_prefix(PREFIX)
    views: dict[str, JobView] = {}
    for key in keys:
        name, slash, _ = key.key.removeprefix(PREFIX).partition("/")
        if slash and not name.startswith("."):  # beside the jobs: what their agents told
            views.setdefault(name, JobView(name, revision=revision)).apply(key)
    found = (view for _, view in sorted(views.items()))
    return [view for view in found if view.spec is not None or view.set_aside]


def job_document(view: JobView, now_ns: Callable[[], int] = time.time_ns) -> dict[str, Any]:
    """Return what `castor jobs --json` prints of a job.

    Machines are counted as alive if an agent fills them and is alive; the other live agents are
    standbys.
    """
    spec, plan = view.spec, view.plan
    places = plan.agents if plan is not None else ()
    filled = [name for name in places if name in view.reports]
    reports = [view.reports[name] for name in filled]
    iteration = max((report.iteration for report in reports), default=0)
    if plan is not None:
        iteration = max(iteration, plan.iteration, plan.reached)
    failures = [] if plan is None else [one.cause for one in plan.culprits]
    return {
        "job": view.job,
        "run": "" if spec is None else spec.run,
        "state": _state(view, len(filled)),
        "iteration": iteration,
        "alive": len(filled),
        "machines": 0 if spec is None else spec.machines,
        "standbys": len(view.reports) - len(filled),
        "age_s": 0.0 if spec is None else (now_ns() - spec.started_ns) / 1e9,
        "last_failure": "; ".join(failures),
        "reason": "" if plan is None else plan.reason or plan.waits_for,
    }


def _state(view: JobView, alive: int) -> str:
    """Return a job's state in a word."""
    plan = view.plan
    if view.spec is None:
        state = "unreadable"
    elif plan is not None and plan.is_over:
        state = str(plan.phase)
    elif not view.reports:
        state = "off"  # no agent lives: the same line on every host goes on
    elif plan is None:
        state = "starting"
    elif kinds := {wish.kind for wish in view.wishes.values()}:
        state = "draining" if kinds == {WishKind.DRAIN} else "stopping"
    elif plan.phase == Phase.GATHER:
        state = "gathering"
    elif alive < view.spec.machines or not all(view.reports[n].redundant for n in plan.agents):
        state = "degraded"
    else:
        state = "training"
    return state
