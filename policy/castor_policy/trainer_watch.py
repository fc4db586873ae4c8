"""Watches the trainers of one machine: which hangs, whether all stand still, how far each came.

A trainer that is stopped is found by itself, in a second. Where all wait for one that does not
come, no machine knows alone who that is: the agents say how far each of their ranks has come, and
the root compares (`castor_policy.agents.standstill`).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from castor_policy.membership import LIMITS, WatchLimits

TRAINING = 3
"""`Sign.phase` of a trainer that has loaded its part; above it one that has ended well."""

Position: TypeAlias = tuple[int, int, int]
"""How far a rank has come in its generation: phase, iterations ended, collectives begun.

Collectives of the groups that all ranks share only, so that every rank counts the same ones: who
has begun fewer is who the others wait for.
"""

LOOK_EVERY_S = 0.05
"""An agent looks at its trainers so often."""

_LONGEST_GAP_S = 2 * LOOK_EVERY_S
"""The most that one look may add to what was watched; see `Stillness`."""


@dataclass(frozen=True, slots=True)
class Sign:
    """What one look at a trainer shows.

    Attributes:
        phase: 0 before its Checkpointer exists, 1 starting, 2 loading, 3 training, 4 finished.
        heartbeat: counts up in a thread of its own; 0 before the Checkpointer exists.
        collectives: begun by it in this generation, of all groups.
        position: see `Position`.
        processor_s: processor time it has used; None once it is gone.
        stopped: the kernel says that it is stopped (SIGSTOP, a debugger).
        busy: it says that it may be silent for now.
    """

    phase: int
    heartbeat: int
    collectives: int
    position: Position
    processor_s: float | None
    stopped: bool = False
    busy: bool = False


@dataclass(frozen=True, slots=True)
class Hung:
    """One trainer stands still by itself."""

    rank: int
    reason: str


@dataclass(frozen=True, slots=True)
class Standing:
    """No trainer of this machine shows a sign of life, for `limit_s` by now."""

    positions: Mapping[int, Position]
    limit_s: float


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
        """Take an observation in; return whether the process is taken for hung."""
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
        least_s: float = LIMITS.stall_s,
        first_s: float = LIMITS.startup_s,
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
        """Take an observation in; return whether training is taken for stalled.

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


class TrainerWatch:
    """Judges the trainers of one machine in one generation.

    Args:
        limits: how long is too long.
    """

    def __init__(self, limits: WatchLimits) -> None:
        self._hang_s = limits.hang_s
        self._stillness: dict[int, Stillness] = {}
        self._stall = Stall(limits.stall_factor, limits.stall_s, limits.startup_s, _LONGEST_GAP_S)

    def observe(self, now_s: float, signs: Mapping[int, Sign]) -> Hung | Standing | None:
        """Take one look at every rank in; return what is wrong, if anything is."""
        training = {rank: sign for rank, sign in signs.items() if sign.phase <= TRAINING}
        for rank, sign in training.items():
            if sign.processor_s is not None and self._stands_still(now_s, rank, sign):
                return Hung(rank, f"stood still for {self._hang_s:g} s")
        if not training:
            return None
        life = tuple(
            (rank, sign.position, sign.collectives) for rank, sign in sorted(signs.items())
        )
        iteration = min(sign.position[1] for sign in training.values())
        busy = any(sign.busy for sign in training.values())
        if self._stall.observe(now_s, iteration, life, busy=busy):
            positions = {rank: sign.position for rank, sign in training.items()}
            return Standing(positions, self._stall.limit_s)
        return None

    def _stands_still(self, now_s: float, rank: int, sign: Sign) -> bool:
        """Whether a process is stopped or stuck in the kernel.

        Before its Checkpointer exists it has no heartbeat, and may well wait for a disk or a peer
        without using the processor: only a process that is stopped is taken for still then.
        """
        stillness = self._stillness.setdefault(rank, Stillness(self._hang_s, _LONGEST_GAP_S))
        seen: tuple[int, float]
        if sign.heartbeat:
            seen = (sign.heartbeat, sign.processor_s or 0.0)
        elif sign.stopped:
            seen = (0, 0.0)
        else:
            seen = (0, now_s)
        return stillness.observe(now_s, *seen)
