"""Who is alive: from heartbeats and missed polls to the moment a machine counts as failed."""

from __future__ import annotations


def detection_ns(failure_ns: int, heartbeat_ns: int, poll_ns: int, misses: int) -> int:
    """Return the time at which the root holds a machine that failed at `failure_ns` for dead.

    Machines write a heartbeat at every multiple of `heartbeat_ns`; the root looks at every
    multiple of `poll_ns`. A poll misses a machine when no heartbeat fell into the time since the
    poll before, and `misses` misses in a row make it dead (PAPER.md 2b: 3 s, 5 s, 3 misses: the
    paper's 15 s, and up to 5 s more from where in a period the failure falls).

    Heartbeats have to come more often than `misses` polls, or live machines are held for dead:
    `misses * poll_ns > heartbeat_ns` is the caller's to see to. `misses` = 0 stands for a
    detector that needs no time. The result never decreases with `failure_ns`. Written in the
    subset of Python that the sweep engine compiles as it stands.
    """
    if misses == 0:
        return failure_ns
    last_heartbeat_ns = failure_ns // heartbeat_ns * heartbeat_ns
    first_poll_ns = -(-last_heartbeat_ns // poll_ns) * poll_ns
    return max(failure_ns, first_poll_ns + misses * poll_ns)
