"""An agent that is to leave: another asks for that, or its own machine is told to go.

1. It leaves once its place is given away and all replicas are there again, which the root says by
   taking the wish out of the store; a machine without a place leaves at once.
2. Who is told to go asks for it itself, and again until the wish stands. When its time is up it
   leaves all the same: its machine would end it anyway, and its memory waits for its next life.
"""

from __future__ import annotations

from castor_policy.agents.effects import AskDrain, Exit, StopTrainers, WorkerEffect
from castor_policy.agents.events import WishChanged
from castor_policy.agents.exit_codes import DO_NOT_REQUEUE, TERMINATED
from castor_policy.agents.wish import Wish, WishKind

ASK_AGAIN_S = 2.0
"""A wish that does not stand in the store yet is put there again."""

DRAINED = "drained: this machine has no place any more"
LEFT = "told to go, and nobody took this machine's place in time"


class Leaving:
    """Whether and when one life of an agent leaves.

    Args:
        agent: its name.
        incarnation: of this life.
    """

    def __init__(self, agent: str, incarnation: str) -> None:
        self._wish = Wish(WishKind.DRAIN, agent, incarnation)
        self._key = ""
        self._by_s: float | None = None
        self._asked_s: float | None = None

    def wish_changed(self, event: WishChanged, *, is_needed: bool) -> list[WorkerEffect]:
        """Take in a wish: that this machine be drained, that this is done, or another one.

        Args:
            event: it.
            is_needed: this machine has a place, or may get it back.
        """
        if event.wish is not None:
            if event.wish.life == self._wish.life:
                self._key = event.key
            return []
        if event.key != self._key:
            return []
        self._key = ""
        return [] if is_needed else _exit(DO_NOT_REQUEUE, DRAINED)

    def told(self, patience_s: float, now_s: float) -> None:
        """Take in that the machine is to go within `patience_s`; the first word counts."""
        if self._by_s is None:
            self._by_s = now_s + patience_s

    def due(self, now_s: float, *, is_needed: bool) -> list[WorkerEffect]:
        """Return what is to be done now; see `wish_changed` for `is_needed`."""
        if self._by_s is None:
            return []
        if now_s >= self._by_s:
            return _exit(TERMINATED, LEFT)
        if self._key:
            return []
        if not is_needed:
            return _exit(DO_NOT_REQUEUE, DRAINED)
        if self._asked_s is not None and now_s - self._asked_s < ASK_AGAIN_S:
            return []
        self._asked_s = now_s
        return [AskDrain(self._wish)]


def _exit(code: int, reason: str) -> list[WorkerEffect]:
    return [StopTrainers(), Exit(code, reason)]
