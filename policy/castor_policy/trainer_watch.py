"""Watches the trainers of one machine: which hangs, whether all stand still, how far each came.

A trainer that is stopped is found by itself, in a second. Where all wait for one that does not
come, no machine knows alone who that is: the agents say how far each of their ranks has come, and
the root compares (`castor_policy.agents.standstill`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from castor_policy.membership import Stall, Stillness

TRAINING = 3
"""`Sign.phase` of a trainer that has loaded its part; above it one that has ended well."""

Position: TypeAlias = tuple[int, int, int]
"""How far a rank has come in its generation: phase, iterations ended, collectives begun.

Collectives of the groups that all ranks share only, so that every rank counts the same ones: who
has begun fewer is who the others wait for.
"""

_LONGEST_GAP_S = 0.1
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


class TrainerWatch:
    """Judges the trainers of one machine in one generation.

    Args:
        hang_s: a process that stood still, or was stopped, for so long is hung.
        stall_factor, stall_s, startup_s: see `Stall`.
    """

    def __init__(
        self, hang_s: float, stall_factor: float, stall_s: float, startup_s: float
    ) -> None:
        self._hang_s = hang_s
        self._stillness: dict[int, Stillness] = {}
        self._stall = Stall(stall_factor, stall_s, startup_s, _LONGEST_GAP_S)

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
        without using the processor: only a process that is stopped is held for still then.
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
