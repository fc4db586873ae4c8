"""Checks that whoever is named for a failure is who it struck (invariant 18)."""

from __future__ import annotations

from castor_policy.agents.evidence import FailureKind
from castor_policy.agents.plan import Plan
from castor_sim.explore.invariants import Violation


class Blame:
    """Which trainers were struck, or failed by themselves."""

    def __init__(self) -> None:
        self._struck: set[tuple[int, int]] = set()

    def struck(self, generation: int, rank: int) -> None:
        """Take in that this trainer's end, or its standing still, has its cause in itself."""
        self._struck.add((generation, rank))

    def check(self, plan: Plan) -> None:
        """Check who a plan holds responsible for the failure of the generation before."""
        for one in plan.culprits:
            known = (plan.generation - 1, one.rank) in self._struck
            # A rank that all others wait for may be slow, or cut off, and is named for that.
            if one.rank >= 0 and one.kind != FailureKind.STALL and not known:
                what = f"machine {one.machine}: {one.cause}, in generation {plan.generation - 1}"
                raise Violation(18, f"{what}, in which nothing befell this rank")
