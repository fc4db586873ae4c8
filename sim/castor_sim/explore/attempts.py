"""Checks of how often the root tries again: not too often, and not too seldom."""

from __future__ import annotations

from castor_policy.agents.plan import Plan
from castor_sim.explore.invariants import Violation
from castor_sim.explore.roles import Scene

GENERATIONS_AFTER = 6
"""Most generations that may begin after the last fault is over."""

ANSWERS_S = 10.0
"""What storage answers has come to the root after so long."""


class Attempts:
    """Counts generations that came to nothing (invariants 11 and 15).

    Args:
        scene: what is looked at.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._fruitless = 0
        self._furthest = 0
        self._after_faults = 0

    def begun(self, plan: Plan) -> None:
        """Count a generation that has begun because the one before it failed.

        Raises:
            Violation: the faults have been over for many generations (15).
        """
        self._fruitless += 1
        if self._scene.is_quiet():
            self._after_faults += 1
            if self._after_faults > GENERATIONS_AFTER and self._scene.script_error is None:
                what = f"generation {plan.generation} is begun: {plan.reason}"
                raise Violation(15, f"{self._after_faults} generations after the last fault {what}")

    def completed(self, iteration: int, *, is_current: bool) -> None:
        """Take in that an iteration is whole in memory: an attempt that bore fruit.

        Not where the script only comes to its error again, from further back.

        Args:
            iteration: it.
            is_current: the newest plan's generation has trained it.
        """
        is_new = iteration > self._furthest or self._scene.script_error is None
        self._furthest = max(self._furthest, iteration)
        if is_new and is_current:
            self._fruitless = 0

    def check_given_up(self, plan: Plan, *, begun_in_vain: bool) -> None:
        """Check that the job is given up only after as many attempts as its user allows.

        Args:
            plan: which gives it up.
            begun_in_vain: the script failed twice from scratch, without an iteration in between.

        Raises:
            Violation: sooner (11).
        """
        if all(self._waits_for_storage(name) for name in plan.agents):
            return
        attempts = self._fruitless + 1
        hopeless = self._scene.script_error is not None and begun_in_vain
        if attempts <= self._scene.spec.recovery.max_attempts and not hopeless:
            what = f"after {attempts} generations without an iteration"
            raise Violation(11, f"the root gave the job up {what}: {plan.reason}")

    def _waits_for_storage(self, name: str) -> bool:
        """Whether storage does not answer a machine, or did not until just now."""
        host = self._scene.agents[name].host
        return host.storage_silent_until_s > self._scene.now_s - ANSWERS_S
