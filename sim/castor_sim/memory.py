"""What the machines' CPU memory holds of the newest checkpoint that is whole there."""

from __future__ import annotations

from castor_policy.recovery import NOTHING, OWN_ONLY, SCRATCH, STORAGE, WHOLE
from castor_sim.strategy_costs import NEVER_NS


class Memory:
    """The memory tier of a simulated cluster; `recovery.choose` reads it.

    Args:
        positions: N, machines that train.

    Attributes:
        iteration: of the checkpoint.
        most_held: what the machines that lost nothing hold of it.
        state: of each position: `WHOLE`, `OWN_ONLY` or `NOTHING`.
        lost: positions that hold nothing, in the order in which they were lost.
        load: scratch for `choose`.
    """

    def __init__(self, positions: int) -> None:
        self.iteration = 0
        self.most_held = NOTHING
        self.state = [WHOLE] * positions
        self.lost: list[int] = []
        self.load = [0] * positions
        self._partial: list[int] = []
        self._whole_ns = NEVER_NS

    def completed(self, iteration: int) -> None:
        """Take in that a checkpoint is whole on every machine."""
        self.iteration = iteration
        self._become_whole()

    def lose(self, position: int) -> None:
        """Take in that a position's memory is gone."""
        if self.state[position] == NOTHING:
            return
        if self.state[position] == OWN_ONLY:
            self._partial.remove(position)
        self.state[position] = NOTHING
        self.lost.append(position)

    def interrupted(self, now_ns: int) -> None:
        """Take in a failure: replication in the background is over, or stops."""
        if self._whole_ns <= now_ns:
            self._become_whole()
        self._whole_ns = NEVER_NS

    def retrieved(self, iteration: int, tier: int, whole_ns: int) -> None:
        """Take in that every rank has its shard; replicas of others follow in the background.

        Args:
            iteration: which one was loaded.
            tier: the code of where from.
            whole_ns: when they are all there, if nothing fails before.
        """
        self.iteration = iteration
        if tier == SCRATCH:
            # The state at the start is no checkpoint: it is made anew, not loaded.
            self._become_whole()
            self.most_held = NOTHING
        elif tier == STORAGE:
            self._become_whole()
            self.most_held = OWN_ONLY
        for position in self.lost:
            self.state[position] = OWN_ONLY
        self._partial.extend(self.lost)
        self.lost.clear()
        if self._partial or self.most_held == OWN_ONLY:
            self._whole_ns = whole_ns

    def _become_whole(self) -> None:
        for position in (*self.lost, *self._partial):
            self.state[position] = WHOLE
        self.lost.clear()
        self._partial.clear()
        self.most_held = WHOLE
        self._whole_ns = NEVER_NS
