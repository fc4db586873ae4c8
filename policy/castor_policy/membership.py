"""Who is alive: from heartbeats and missed polls to the moment a machine counts as failed."""

from __future__ import annotations

import math
from collections.abc import Hashable


def detection_ns(failure_ns: int, heartbeat_ns: int, poll_ns: int, misses: int) -> int:
    """Return the time at which the root holds a machine that failed at `failure_ns` for dead.

    Machines write a heartbeat at every multiple of `heartbeat_ns`; the root looks at every
    multiple of `poll_ns`. A poll misses a machine when no heartbeat fell into the time since the
    poll before, and `misses` misses in a row make it dead (docs/paper.md, the artifact: 3 s, 5 s,
    3 misses: the paper's 15 s, and up to 5 s more from where in a period the failure falls).

    Heartbeats have to come more often than `misses` polls, or live machines are taken for dead:
    `misses * poll_ns > heartbeat_ns` is the caller's to see to. `misses` = 0 stands for a
    detector that needs no time. The result never decreases with `failure_ns`. Written in the
    subset of Python that the sweep engine compiles as it stands.
    """
    if misses == 0:
        return failure_ns
    last_heartbeat_ns = failure_ns // heartbeat_ns * heartbeat_ns
    first_poll_ns = -(-last_heartbeat_ns // poll_ns) * poll_ns
    return max(failure_ns, first_poll_ns + misses * poll_ns)


class Stillness:
    """Says when a process has stood still for too long: stopped, or stuck in the kernel.

    It stands still while its heartbeat does not count up and it is given no processor time: a
    process that computes without ever letting its heartbeat thread run is busy, not hung, and one
    that waits for a peer still beats. Time is counted as it was watched: an observer that was
    itself kept from running for a second has not seen a second of stillness.

    Args:
        limit_s: stillness that counts as a hang.
        longest_gap_s: the most that one observation may add to what was watched.
    """

    def __init__(self, limit_s: float, longest_gap_s: float) -> None:
        self._limit_s = limit_s
        self._longest_gap_s = longest_gap_s
        self._seen: tuple[int, float] | None = None
        self._at_s = 0.0
        self._still_s = 0.0

    def observe(self, now_s: float, heartbeat: int, processor_s: float) -> bool:
        """Take an observation in; return whether the process is held for hung."""
        if self._seen != (heartbeat, processor_s):
            self._seen = (heartbeat, processor_s)
            self._still_s = 0.0
        else:
            self._still_s += min(now_s - self._at_s, self._longest_gap_s)
        self._at_s = now_s
        return self._still_s >= self._limit_s


class Stall:
    """Says when training makes no progress though its processes live: a deadlock, a lost peer.

    Time is counted as it was watched, as in `Stillness`, and from the last sign of life: a
    collective that was begun, an iteration that ended, a section that the user called busy.

    Args:
        factor: silence of so many times the median iteration is a stall.
        least_s: but never earlier than this, for evaluations and the user's own checkpoints.
        first_s: patience with the start of a generation, which imports, loads and compiles.
        longest_gap_s: the most that one observation may add to what was watched.
    """

    def __init__(
        self,
        factor: float,
        least_s: float = 300.0,
        first_s: float = 1800.0,
        longest_gap_s: float = math.inf,
    ) -> None:
        self._factor = factor
        self._least_s = least_s
        self._first_s = first_s
        self._longest_gap_s = longest_gap_s
        self._iteration: int | None = None
        self._life: Hashable = None
        self._since_s = 0.0
        self._at_s = 0.0
        self._silent_s = 0.0
        self._times_s: list[float] = []

    @property
    def limit_s(self) -> float:
        """Silence that counts as a stall now."""
        if len(self._times_s) < 2:
            return self._first_s
        median_s = sorted(self._times_s)[len(self._times_s) // 2]
        return max(self._factor * median_s, self._least_s)

    def observe(
        self, now_s: float, iteration: int, life: Hashable = None, *, busy: bool = False
    ) -> bool:
        """Take an observation in; return whether training is held for stalled.

        Args:
            now_s: the observer's steady clock.
            iteration: the newest that all have ended.
            life: anything that changes with a sign of life, such as counts of collectives.
            busy: the user says that this silence is right.
        """
        if self._iteration is None:
            self._iteration, self._life = iteration, life
            self._since_s = self._at_s = now_s
            return False
        if iteration != self._iteration:
            self._times_s = [*self._times_s[-20:], now_s - self._since_s]
            self._since_s = now_s
        if busy or (iteration, life) != (self._iteration, self._life):
            self._silent_s = 0.0
        else:
            self._silent_s += min(now_s - self._at_s, self._longest_gap_s)
        self._iteration, self._life, self._at_s = iteration, life, now_s
        return self._silent_s >= self.limit_s
