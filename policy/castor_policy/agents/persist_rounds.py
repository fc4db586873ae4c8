"""When the root asks for a persistent checkpoint, and of which iteration.

1. Every machine must persist the same iteration, so it is announced ahead of time.
2. How far ahead, by the pace: iterations are counted for `PERSIST_AHEAD_S` before one is named.
   Where not every iteration is checkpointed, one that is, and not before it is near.
3. What a failure tore is asked for again as soon as the job trains.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from castor_policy.agents.job_spec import JobSpec
from castor_policy.period import next_due

PERSIST_AHEAD_S = 1.0
"""The iteration to persist is announced so far ahead that every machine hears of it in time."""

_NEAR = 4
"""An iteration is near if it comes within so many times what is counted at a time."""


class PersistRounds:
    """The persistent checkpoints that the root of one term asks for.

    Args:
        spec: the job.
        now_s: the root's steady clock.
    """

    def __init__(self, spec: JobSpec, now_s: float) -> None:
        self._spec = spec
        self._due_s = now_s + spec.persistence.every_s
        self._asked = 0
        self._pace_from: tuple[float, int] | None = None

    def found(self, persistent: AbstractSet[int] | None, now_s: float) -> None:
        """Take in which iterations are in storage after a failure; None while it is not known."""
        if self._asked and persistent is not None and self._asked not in persistent:
            # It was being written, or was yet to come: what a failure tore is written again.
            self._due_s = min(self._due_s, now_s)

    def due(self, newest: int, now_s: float) -> int | None:
        """Return the iteration to ask for now; None for none.

        Args:
            newest: iteration that any of the machines that train has reported.
            now_s: the root's steady clock.
        """
        if not self._spec.persistence.tiers or now_s < self._due_s or newest == 0:
            return None
        if self._pace_from is None:
            self._pace_from = (now_s, newest)
        since_s, since_iteration = self._pace_from
        if now_s - since_s < PERSIST_AHEAD_S:
            return None
        ahead = max(0, newest - since_iteration)
        self._pace_from = None
        wanted = next_due(newest + 2 + ahead, self._spec.traffic.checkpoint_every)
        if wanted - newest > 2 + _NEAR * (1 + ahead):
            return None
        self._due_s = since_s + self._spec.persistence.every_s
        self._asked = wanted
        return wanted
