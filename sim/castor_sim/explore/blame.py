"""Checks that whoever is named for a failure is who it struck (invariant 18)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from castor_policy.agents.evidence import SightKind
from castor_policy.agents.plan import Plan
from castor_sim.explore.invariants import Violation

_OF_ONE_TRAINER = frozenset({"trainer", "worn", "hang", "error"})
"""Faults that a trainer's own agent sees: who lives and can reach the store tells in time."""

_WITNESSES = 2
"""One that misses a machine may be cut off itself."""


class Blame:
    """Which trainers were struck, or failed by themselves, and which machines were missed.

    Args:
        kinds: of the faults of the schedule.
    """

    def __init__(self, kinds: Iterable[str]) -> None:
        self._struck: set[tuple[int, int]] = set()
        self._missed: dict[str, set[str]] = {}
        self._miss: dict[str, set[str]] = {}
        self._alarms: Counter[str] = Counter()
        self._is_seen = set(kinds) <= _OF_ONE_TRAINER

    def struck(self, generation: int, rank: int) -> None:
        """Take in that this trainer's end, or its standing still, has its cause in itself."""
        self._struck.add((generation, rank))

    def missed(self, agent: str, by: str) -> None:
        """Take in that an agent cannot reach another one, in truth."""
        self._missed.setdefault(agent, set()).add(by)
        miss = self._miss.setdefault(agent, set())
        if by not in miss:
            miss.add(by)
            self._alarms[agent] += len(miss) == _WITNESSES

    def misses_no_more(self, agent: str, by: str) -> None:
        """Take in that it reaches that one again, or looks for it no more."""
        self._miss.get(agent, set()).discard(by)

    def explains(self, plan: Plan) -> bool:
        """Whether a generation was begun only because machines were missed in truth.

        Each time that enough miss a machine explains one generation, and no other.
        """
        agents = [one.agent for one in plan.culprits if one.kind == SightKind.UNREACHED]
        if not agents or len(agents) < len(plan.culprits):
            return False
        if any(not self._alarms[agent] for agent in agents):
            return False
        self._alarms.subtract(agents)
        return True

    def check(self, plan: Plan) -> None:
        """Check who a plan holds responsible for the failure of the generation before."""
        before = plan.generation - 1
        if self._is_seen and not plan.culprits:
            ranks = sorted(rank for generation, rank in self._struck if generation == before)
            what = f"nobody is named, and ranks {ranks} of generation {before} were struck"
            raise Violation(18, what)
        for one in plan.culprits:
            by = self._missed.get(one.agent, set())
            if one.kind == SightKind.UNREACHED and len(by) < _WITNESSES:
                what = f"machine {one.machine}: {one.cause}, by the word of {sorted(by)} alone"
                raise Violation(18, what)
            known = (before, one.rank) in self._struck
            # A rank that all others wait for may be slow, or cut off, and is named for that.
            if one.rank >= 0 and one.kind != SightKind.STALL and not known:
                what = f"machine {one.machine}: {one.cause}, in generation {before}"
                raise Violation(18, f"{what}, in which nothing happened to this rank")
