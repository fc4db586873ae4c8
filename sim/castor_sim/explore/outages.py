"""Checks of what an outage of the store alone may cost (invariant 10), and what it forgets (6)."""

from __future__ import annotations

from collections.abc import Sequence

from castor_policy.agents.plan import Phase, Plan
from castor_sim.explore.blame import Blame
from castor_sim.explore.invariants import Violation
from castor_sim.explore.plan_grounds import is_known_to_nobody
from castor_sim.explore.roles import Scene
from castor_sim.explore.schedule import NO_SPACE, Fault


class Outages:
    """What the store of one schedule has lost, and the generations that this allows.

    Args:
        scene: what is looked at.
        faults: the schedule.
        blame: who missed whom.

    Attributes:
        is_forgotten: the store has lost the plan, and nobody can tell of it any more: whoever is
            left begins the job anew.
    """

    def __init__(self, scene: Scene, faults: Sequence[Fault], blame: Blame) -> None:
        self._scene = scene
        self._blame = blame
        kinds = {fault.kind for fault in faults}
        self._is_alone = kinds <= {"store"} or kinds == {"twin"}
        # Who cannot write to a store that lost its data does not come back to it in time.
        self._is_full = any(fault.kind == "store" and fault.value == NO_SPACE for fault in faults)
        self.is_forgotten = False
        self._lost_plan: Plan | None = None
        self._taken_along = self._losses = self._false_alarms = 0

    def data_lost(self, plan: Plan | None) -> None:
        """Take in that the store has lost its data.

        If it has lost how the job ended, too, whoever was away meanwhile begins it again: there is
        nobody who could tell. Nor is there where all who knew the plan die before they write it.

        Args:
            plan: the newest that stood there; None: there was none.
        """
        self._lost_plan = plan
        # A plan that is being made, or that not all have seen, may go along: one more is due then.
        seen = [agent.view.known_plan() for agent in self._scene.live()]
        known = plan is not None and all(plan == one for one in seen)
        self._losses += 1
        self._taken_along += not known or (plan is not None and plan.phase == Phase.GATHER)
        self.is_forgotten = plan is not None and plan.is_over

    def forgets(self, before: Plan | None) -> bool:
        """Whether the store has lost a plan, and all who could write it again have died."""
        if before is None or before is not self._lost_plan:
            return False
        self.is_forgotten |= is_known_to_nobody(before, self._scene.live())
        return self.is_forgotten

    def begun(self, plan: Plan) -> None:
        """Take in a generation that has begun because the one before it failed."""
        self._false_alarms += self._blame.explains(plan)

    def check(self, plan: Plan | None) -> None:
        """Check what the job came to in the end, if nothing failed but the store.

        Packets are lost in any run: a machine that two others missed in truth is taken for lost.

        Args:
            plan: the last one.

        Raises:
            Violation: it took more generations than that explains (10).
        """
        generation = plan.generation if plan is not None else 0
        most = 1 + self._taken_along + (self._is_full and self._losses) + self._false_alarms
        if self._is_alone and not 1 <= generation <= most:
            raise Violation(10, f"it took {generation} generations")
