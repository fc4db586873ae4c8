"""Which of the machines' trainers go on in place, and where a warm spare stands.

The trainers of a position start and end together. Those that have begun an iteration since they
were started can leave a generation and join the next; the others are started anew with it.
"""

from __future__ import annotations

from castor_policy.in_place import goes_on_in_place
from castor_sim.strategy_costs import NEVER_NS, StrategyCosts


class Trainers:
    """The trainers and warm spares of a simulated job.

    Args:
        costs: the strategy's figures.
        positions: N, machines that train.

    Attributes:
        in_place: whether the generation that was begun last goes on in place.
    """

    def __init__(self, costs: StrategyCosts, positions: int) -> None:
        self.in_place = False
        self._costs = costs
        self._are_lost = [False] * positions
        self._lost: list[int] = []
        """Positions whose trainers have ended since training went on last."""
        self._restarted = False
        """All have: some generation since then did not go on in place."""
        self._spare_ns = [0] * positions
        """When the spare of each stands, or `NEVER_NS`; but none does before `_spares_ns`."""
        self._spares_ns = NEVER_NS
        self._spareless: list[int] = []
        """Positions with `NEVER_NS`."""

    def lose(self, position: int, *, machine: bool) -> None:
        """Take in that the trainers of a position are gone; with the `machine` their spare, too."""
        if not self._are_lost[position]:
            self._are_lost[position] = True
            self._lost.append(position)
        if machine:
            self._lose_spare(position)

    def begin(self, *, in_memory: bool, now_ns: int) -> int:
        """Bring all trainers into a generation that loads from memory or not; return its warm-up.

        In place, a spare that stands takes the place of trainers that are lost, and where there is
        none, or on another machine, they build their engines alone. Else spares end, too.
        """
        costs = self._costs
        parked = 0 if self._restarted else len(self._are_lost) - len(self._lost)
        self.in_place = bool(costs.in_place) and goes_on_in_place(in_memory, parked)
        if not self.in_place:
            self._restarted = True
            self._spares_ns = NEVER_NS
            return costs.warm_up_ns
        warm_up_ns = costs.warm_up_in_place_ns
        for position in self._lost:
            if not costs.warm_spares or self._stands_ns(position) > now_ns:
                warm_up_ns = costs.warm_up_alone_ns
            else:
                self._lose_spare(position)
        return warm_up_ns

    def train(self) -> None:
        """Take in that training goes on: all can go on in place from now on."""
        for position in self._lost:
            self._are_lost[position] = False
        self._lost.clear()
        self._restarted = False

    def start_spares(self, now_ns: int) -> None:
        """Take in that spares were started where there are none."""
        stand_ns = now_ns + self._costs.spare_build_ns
        self._spares_ns = min(self._spares_ns, stand_ns)
        for position in self._spareless:
            self._spare_ns[position] = stand_ns
        self._spareless.clear()

    def _stands_ns(self, position: int) -> int:
        return max(self._spares_ns, self._spare_ns[position])

    def _lose_spare(self, position: int) -> None:
        if self._spare_ns[position] != NEVER_NS:
            self._spare_ns[position] = NEVER_NS
            self._spareless.append(position)
