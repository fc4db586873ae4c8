"""When a failure is known, by its kind: one function for all engines."""

from __future__ import annotations

from castor_policy.membership import detection_ns
from castor_sim.tally import Operations


def known_ns(operations: Operations, failure_ns: int, hardware: int) -> int:
    """Return when a failure at `failure_ns` is known; written in the subset that numba compiles.

    An agent sees the exit of its machine's processes (docs/paper.md, sec. 3: agents write their
    machine's health); of a lost machine only the heartbeats' silence tells.
    """
    if not hardware and operations.exit_ns >= 0:
        return failure_ns + operations.exit_ns
    return detection_ns(failure_ns, operations.heartbeat_ns, operations.poll_ns, operations.misses)
