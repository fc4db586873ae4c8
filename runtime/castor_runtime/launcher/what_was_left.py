"""What others have left for a job, in memory and in storage: said aloud when its run starts."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from castor_policy.agents.job_spec import JobSpec
from castor_runtime.agent.abandoned import abandonable
from castor_runtime.arena.job_lock import JobLock
from castor_runtime.arena.leftovers import describe_kept, kept_runs
from castor_runtime.arena.removal import remove_dead
from castor_runtime.persistent.address import tier_at
from castor_runtime.persistent.manifest import MANIFEST_NAME
from castor_runtime.persistent.storage import complete_manifests, tag
from castor_runtime.persistent.tier import Tier

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
    if not spec.resumes:
        looking = [_earlier_checkpoints(spec.job, url) for url in spec.persistence.tiers]
        lines += [line for found in await asyncio.gather(*looking) for line in found]
    return lines


async def _earlier_checkpoints(job: str, url: str) -> list[str]:
    tier = tier_at(url)
    looking = abandonable(lambda: _lines(job, tier), "castor-earlier")
    try:
        return await asyncio.wait_for(looking, _LOOK_S)
    except (TimeoutError, OSError) as error:
        why = str(error) or f"no answer within {_LOOK_S:g} s"
        return [f"cannot see from here what {tier.url} holds: {why}"]


def _lines(job: str, tier: Tier) -> list[str]:
    found = complete_manifests(tier)
    own = sorted(i for i, manifest in found.items() if manifest.attempt.job == job)
    if not own:
        return []
    newest = found[own[-1]].attempt
    about = tier.files(tag(own[-1])).get(MANIFEST_NAME)
    written = time.strftime("%Y-%m-%d %H:%M", time.localtime(about.written_s if about else None))
    whose = f"run {newest.run}" if newest.run else "an earlier run"
    return [
        f"{tier.url} holds iteration {own[-1]} of {whose} of job {job}, of {written}: if the "
        "model and the machines are the same, training goes on from there; to start anew, give "
        "another --persist or another --job"
    ]
