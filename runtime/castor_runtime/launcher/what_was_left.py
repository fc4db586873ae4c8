"""What others have left for a job, in memory and in storage: said aloud when its run starts."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

from castor_policy.agents.job_spec import JobSpec
from castor_runtime.agent.abandoned import abandonable
from castor_runtime.arena.job_lock import JobLock
from castor_runtime.arena.leftovers import describe_kept, kept_runs
from castor_runtime.arena.removal import remove_dead
from castor_runtime.persistent.storage import complete_manifests

_LOOK_S: Final = 5.0
"""Storage that is slower is not waited for: what the agents load is said when they load it."""


async def what_was_left(spec: JobSpec, lock: JobLock) -> list[str]:
    """Return what to tell the user, a line each; what is dead in this machine's memory is removed.

    Args:
        spec: the job.
        lock: of its run, held.
    """
    lines = [
        f"removed {name} from shared memory: no process of its run is alive"
        for name in (*lock.removed, *remove_dead())
    ]
    lines += [
        describe_kept(kept) for kept in kept_runs() if kept.job == spec.job and kept.run != spec.run
    ]
    if spec.persistence.path and not spec.resumes:
        lines += await _earlier_checkpoints(spec)
    return lines


async def _earlier_checkpoints(spec: JobSpec) -> list[str]:
    folder = Path(spec.persistence.path)
    looking = abandonable(lambda: _lines(spec, folder), "castor-earlier")
    try:
        return await asyncio.wait_for(looking, _LOOK_S)
    except (TimeoutError, OSError) as error:
        why = str(error) or f"no answer within {_LOOK_S:g} s"
        return [f"cannot see from here what {folder} holds: {why}"]


def _lines(spec: JobSpec, folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    found = complete_manifests(folder)
    own = sorted(i for i, manifest in found.items() if manifest.attempt.job == spec.job)
    if not own:
        return []
    newest = found[own[-1]].attempt
    written = time.strftime(
        "%Y-%m-%d %H:%M", time.localtime((folder / f"global_step{own[-1]}").stat().st_mtime)
    )
    whose = f"run {newest.run}" if newest.run else "an earlier run"
    return [
        f"{folder} holds iteration {own[-1]} of {whose} of job {spec.job}, of {written}: if the "
        "model and the machines are the same, training goes on from there; to start anew, give "
        "another --persist or another --job"
    ]
