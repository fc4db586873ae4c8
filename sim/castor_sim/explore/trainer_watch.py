"""What an agent sees of its trainers without being told: that one hangs, or that all stand still.

The twin of the runtime's watchdogs.
"""

from __future__ import annotations

from collections.abc import Sequence

from castor_policy.agents.events import TrainerHung, TrainersStanding
from castor_sim.explore.roles import Agent, Scene, Trainer

STALL_S = 6.0
"""A trainer none of whose iterations ends for so long is taken for stalled."""

FIRST_STALL_S = 30.0
"""Patience with a generation's first iteration: its peers may not have heard of the plan yet."""


class TrainerWatch:
    """Watches over the trainers of one life of an agent.

    Args:
        scene: around it.
        agent: whose trainers; told what is seen by its `see`.
    """

    def __init__(self, scene: Scene, agent: Agent) -> None:
        self._scene = scene
        self._agent = agent
        self._hangs_told: set[int] = set()
        self._standing_told = False

    def look(self) -> None:
        """Look at every trainer now."""
        trainers = self._agent.trainers
        live = [trainers[rank] for rank in sorted(trainers) if trainers[rank].alive]
        if not live:
            return
        self._look_for_standstill(live)
        for trainer in live:
            hung_s = trainer.hung_since_s
            if not trainer.alive or hung_s is None or trainer.rank in self._hangs_told:
                continue
            if self._scene.now_s - hung_s >= self._scene.spec.limits.hang_s:
                self._hangs_told.add(trainer.rank)
                self._agent.see(TrainerHung(trainer.generation, trainer.rank, "stands still"))

    def _look_for_standstill(self, live: Sequence[Trainer]) -> None:
        """Say how far each trainer has come once none goes on, and that they do again."""
        busy = any(trainer.holds for trainer in live)
        stands = not busy and all(
            self._scene.now_s - trainer.progress_s
            >= (STALL_S if trainer.has_trained else FIRST_STALL_S)
            for trainer in live
        )
        if stands == self._standing_told:
            return
        self._standing_told = stands
        positions = {t.rank: (int(t.resumed), t.iteration, 0) for t in live} if stands else {}
        self._agent.see(TrainersStanding(live[0].generation, positions))

    def forget(self) -> None:
        """Begin anew: the trainers have been stopped."""
        self._hangs_told.clear()
        self._standing_told = False
