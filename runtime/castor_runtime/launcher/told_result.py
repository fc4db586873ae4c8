"""A job's result for whoever is elsewhere: what its launcher writes, from what its agents tell."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Final

from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Phase, Plan
from castor_policy.interleaving import NONE
from castor_records.result import Result
from castor_runtime.launcher.accounts import Accounts
from castor_runtime.launcher.job_view import JobView
from castor_runtime.launcher.kept_memory import KeptMemory
from castor_runtime.launcher.result_file import judge, result_of

RUNNING: Final = "running"


def told_result(view: JobView, accounts: Accounts) -> Result:
    """Return the result of a job as it stands: what it came to, or, "running", has come to so far.

    What only a launcher knows is empty: its machine, its command, the faults that it injected.
    Of a job that was given up the agents keep what was complete; how much that is they alone know.

    Raises:
        ValueError: the store has no such job, or its agents disagree on the final state.
    """
    spec, plan = view.spec, view.plan
    if spec is None:
        raise ValueError(f"the store has no job {view.job!r}")
    entries = accounts.entries()
    finals = [one.final for one in accounts.by_agent.values() if one.final is not None]
    result = result_of(spec, entries, finals)
    ended = judge(plan, {})
    reached = 0 if plan is None else plan.reached
    known = max((report.iteration for report in view.reports.values()), default=0)
    until_ns = max((entry.time_ns for entry in entries), default=0)
    return replace(
        result,
        outcome=RUNNING if ended is None else ended.outcome,
        reason="" if ended is None else ended.reason,
        versions=_versions(view),
        iterations=max(result.iterations, known, 0 if ended is None else reached),
        kept_memory=_kept(spec, plan),
        wall_s=(time.time_ns() - spec.started_ns if ended is None else until_ns) / 1e9,
    )


def _kept(spec: JobSpec, plan: Plan | None) -> dict[str, Any] | None:
    """Return what is kept in memory for `castor resume`, on the hosts of the job."""
    if plan is None or plan.phase != Phase.FAILED:
        return None
    if not plan.reached or spec.traffic.scheme == NONE:
        return None  # nothing was in memory
    resume, clean = f"castor resume {spec.job}", f"castor clean --job {spec.job}"
    return KeptMemory(spec.run, plan.reached, 0, resume, clean).to_json()


def _versions(view: JobView) -> dict[str, str]:
    """Return the versions that the job's agents have, all the same ones."""
    versions = {} if view.software is None else view.software.versions
    return {package.lower(): version for package, version in versions.items()}
