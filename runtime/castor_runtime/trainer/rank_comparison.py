"""Compares what all ranks say of themselves; each tells its agent of what is odd of itself."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from castor_policy.odd_loss import OddLoss
from castor_policy.slow_ranks import SlowRank
from castor_records.events.event import Event
from castor_records.events.training import NotFinite, Slow
from castor_runtime.trainer.agent_link import TrainerSettings
from castor_runtime.trainer.checkpoint_steps import Completed


class RankComparison:
    """One rank's, in one generation.

    Args:
        settings: of the trainer.
        tell: tells its agent.
    """

    def __init__(self, settings: TrainerSettings, tell: Callable[[Event], None]) -> None:
        self._settings = settings
        self._tell = tell
        self._slow = SlowRank(settings.rank, settings.limits)
        self._odd = OddLoss(settings.rank)

    def take(self, completed: Completed) -> None:
        """Take in what came with a checkpoint."""
        settings, ranks = self._settings, completed.ranks
        seconds = median(one.seconds for one in ranks)
        costs = self._slow.observe(seconds, [one.own_s for one in ranks], completed.iterations)
        if costs is not None:
            self._tell(
                Slow(
                    **settings.who,
                    machine=settings.machine,
                    iteration=completed.iteration,
                    over=costs.is_over,
                    own_s=costs.own_s,
                    others_s=costs.others_s,
                    costs_s=costs.costs_s,
                    share=costs.share,
                    iterations=costs.iterations,
                    lost_s=costs.lost_s,
                )
            )
        if self._odd.observe([one.odd for one in ranks]):
            first = ranks[settings.rank].odd
            self._tell(NotFinite(**settings.who, machine=settings.machine, iteration=first))
