"""Jobs that are small enough for one process."""

from __future__ import annotations

import secrets
import time
from typing import Any, Final

from castor_policy.agents.job_spec import JobSpec
from castor_policy.job_options import TrafficOptions
from castor_policy.membership import WatchLimits

PAIRS: Final = ((0, 1), (1, 0), (2, 3), (3, 2))
"""Who holds each shard, where four machines hold each other's in pairs."""


def small_job(**changes: Any) -> JobSpec:
    """Return a new job of four machines in pairs, with a rank each, by a name of its own.

    Args:
        changes: fields that are to be different.
    """
    fields: dict[str, Any] = {
        "job": f"h{secrets.token_hex(4)}",
        "machines": 4,
        "ranks_per_machine": 1,
        "placement": "group",
        "replicas": PAIRS,
        "script": "train.py",
        "started_ns": time.time_ns(),
        "traffic": TrafficOptions(chunk_bytes=4096),
        # Where nothing is to expire a loaded machine keeps it.
        "limits": WatchLimits(lease_s=4.0),
    }
    return JobSpec(**(fields | changes))
