"""Which of a job's keys an agent reads and watches: few, unless it is root.

An agent needs the plan, who is root, what is to be persisted, what is asked of it, and its own
report: what others report is for the root alone. So a report is told to two, its writer and the
root, however many agents there are. Whoever is elected reads all of the job, and watches from that
revision on (`StoreView`).
"""

from __future__ import annotations

from functools import lru_cache

from castor_policy.agents.admission import credentials_key, software_prefix
from castor_policy.agents.store_keys import (
    agents_prefix,
    asked_prefix,
    job_prefix,
    layout_prefix,
    persist_key,
    plan_key,
    root_key,
    spec_key,
)
from castor_policy.store import Keys


@lru_cache(maxsize=4096)
def agents_keys(job: str, agent: str) -> Keys:
    """Return what every agent follows; also what never changes, to create it again if lost."""
    names = (root_key, plan_key, persist_key, spec_key, credentials_key)
    own = agents_prefix(job) + agent
    return Keys(
        frozenset({own, *(name(job) for name in names)}),
        (layout_prefix(job), software_prefix(job), asked_prefix(job)),
    )


@lru_cache(maxsize=64)
def roots_keys(job: str) -> Keys:
    """Return what the root follows: all of the job, in the order of the store's revisions."""
    return Keys.under(job_prefix(job))
