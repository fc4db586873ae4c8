"""Trainers that leave one generation and join the next, without a restart: the agent's side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Final

from castor_runtime.agent.trainer_link import TrainerLink
from castor_runtime.processes import activity
from castor_runtime.trainer.agent_link import TrainerSettings

LEAVE_S: Final = 10.0
"""A trainer meets the end of its generation at its next collective. One that does not come to any
for so long is restarted: it hangs, or computes for longer than a restart takes."""

_LOOK_S: Final = 0.005


class Parking:
    """Which of a machine's trainers can go on in place, and which have left their generation.

    Args:
        link: to the trainers.
    """

    def __init__(self, link: TrainerLink) -> None:
        self._link = link
        self._able: dict[int, int] = {}
        """Rank -> the generation by which the link knows it."""
        self._within: dict[int, int] = {}
        """Rank -> the generation that it was told to join; the link knows it by that once it has
        said hello there, which it may never do if that generation is over first."""
        self._left: set[int] = set()

    @property
    def parked(self) -> frozenset[int]:
        """Ranks that have left their generation and were not told to join another yet."""
        return frozenset(self._left)

    def hear(self, op: str, generation: int, rank: int) -> None:
        """Take in what a trainer has said.

        Args:
            op: "in_place": it can go on so; "hello": it has come to a generation; "left": it has
                left, and writes no checkpoint memory.
            generation: by which the link knows it.
            rank: its rank.
        """
        if op == "left":
            self._left.add(rank)
        elif op == "in_place":
            self._able[rank] = self._within[rank] = generation
        elif rank in self._able:
            self._able[rank] = generation

    def are_able(self, ranks: Iterable[int]) -> bool:
        """Whether all of them can go on in place."""
        return all(rank in self._able for rank in ranks)

    async def park(self, pids: Mapping[int, int]) -> None:
        """Have those leave that can; return when they have, or will not.

        Args:
            pids: of the trainers that are alive, by rank.
        """
        self._left &= pids.keys()
        waited = {rank for rank in pids if rank in self._able} - self._left
        for rank in waited:
            message = {"op": "leave", "generation": self._within[rank]}
            self._link.tell(self._able[rank], rank, message)
        until_s = time.monotonic() + LEAVE_S
        while (waited := waited - self._left) and time.monotonic() < until_s:
            for rank in tuple(waited):
                used_s, stopped = activity(pids[rank])
                if used_s is None or stopped:
                    waited.discard(rank)
            await asyncio.sleep(_LOOK_S)

    def join(self, rank: int, settings: TrainerSettings, rendezvous: str) -> None:
        """Have a parked trainer join the generation of `settings`, whose ranks meet there."""
        self._link.tell(self._able[rank], rank, join_message(settings, rendezvous))
        self._left.discard(rank)
        self._within[rank] = settings.generation

    def forget(self, keep: frozenset[int] = frozenset()) -> None:
        """Forget the trainers that have ended: all but those."""
        self._left &= keep
        for told in (self._able, self._within):
            for rank in told.keys() - keep:
                del told[rank]


def join_message(settings: TrainerSettings, rendezvous: str) -> dict[str, object]:
    """Return the word to a trainer, or a spare, to join a generation."""
    return {
        "op": "join",
        "generation": settings.generation,
        "settings": settings.to_json(),
        "rendezvous": rendezvous,
    }
