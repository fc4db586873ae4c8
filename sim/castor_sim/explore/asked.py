"""Checks of what the job's user asked for: it stands until it is done, and costs what it says."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from castor_policy.agents.exit_codes import DO_NOT_REQUEUE, FINISHED, GIVEN_UP, TERMINATED
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.wish import Wish, WishKind
from castor_sim.explore.invariants import Violation
from castor_sim.explore.plan_grounds import name_of
from castor_sim.explore.roles import Scene, Trainer
from castor_sim.explore.schedule import WISHES, Fault

IN_TIME_S: Mapping[str, float] = {WishKind.STOP: 3.0, WishKind.CHECKPOINT: 10.0}
"""The job ends so long after it was asked to, all faults are over, and the last recovery began: a
rank that left while it started is waited for as long as a start may take."""

_OF_STORAGE = ("mount", "full", "silent")
"""Faults that persistent storage may have for good."""


class Asked:
    """The wishes of one schedule (invariants 23 and 24).

    Args:
        scene: what is looked at.
        faults: the schedule.
    """

    def __init__(self, scene: Scene, faults: Sequence[Fault]) -> None:
        self._scene = scene
        kinds = {fault.kind for fault in faults}
        self._nothing_fails = kinds <= set(WISHES)
        self._is_stored = kinds.isdisjoint(_OF_STORAGE)
        self._leaves = any(fault.kind == "drain" for fault in faults)
        self._standing: dict[str, tuple[tuple[Wish, ...], float]] = {}
        """By key all that was asked for under it, the newest last, and since when."""
        self._gathers_since_s = 0.0

    def data_lost(self) -> None:
        """Take in that the store has lost them: who knows of them writes them again."""
        self._standing.clear()

    def changed(
        self, key: str, wish: Wish | None, plan: Plan | None, stored: Collection[int]
    ) -> None:
        """Take in what stands under a key now.

        Where one wish has replaced another, the root may have done the earlier one when it hears of
        the later one: a job that was to end at once has ended, whatever was asked for next.

        Args:
            key: it.
            wish: None if it is taken out.
            plan: as the store has it.
            stored: iterations that are whole in the persistent tier.

        Raises:
            Violation: it is taken out and was not done (23).
        """
        if wish is not None:
            were, since_s = self._standing.get(key, ((), self._scene.now_s))
            self._standing[key] = (*were, wish), since_s
        elif key in self._standing:
            were, _ = self._standing.pop(key)
            may_be_done = [*(was for was in were if was.kind == WishKind.STOP), were[-1]]
            if plan is None or not any(_is_done(was, plan, stored) for was in may_be_done):
                what = "no plan" if plan is None else name_of(plan)
                raise Violation(23, f"{were[-1].kind} {were[-1].agent} is taken out, with {what}")

    def planned(self, plan: Plan, progress: Mapping[tuple[int, int], Trainer]) -> None:
        """Check that a generation that was asked for goes on from where the last one held (24).

        And when a job has finished, that it was not asked to end long before (23).

        Args:
            plan: it.
            progress: by generation and rank, who trained.

        Raises:
            Violation: something was trained that is lost, or what was asked for took too long.
        """
        if plan.phase == Phase.GATHER:
            self._gathers_since_s = self._scene.now_s
        if plan.asked_for and plan.phase in (Phase.GATHER, Phase.LOAD):
            before = plan.generation - 1
            ended = [t.iteration for (of, _), t in progress.items() if of == before]
            newest = max(ended, default=0)
            loads = plan.phase == Phase.LOAD and self._nothing_fails
            if newest > (plan.iteration if loads else plan.reached):
                raise Violation(24, f"{name_of(plan)}, and generation {before} trained {newest}")
        elif plan.phase == Phase.FINISHED and self._scene.is_quiet():
            self._check_in_time()

    def _check_in_time(self) -> None:
        quiet_s = self._scene.quiet_since_s()
        for (*_, wish), since_s in self._standing.values():
            if wish.kind == WishKind.CHECKPOINT and not self._is_stored:
                continue  # it may never be
            limit_s = IN_TIME_S.get(wish.kind)
            waited_s = self._scene.now_s - max(since_s, quiet_s, self._gathers_since_s)
            if limit_s is not None and waited_s > limit_s:
                raise Violation(23, f"{wish.kind} is not done after {waited_s:.1f} s")

    def codes(self, phase: str) -> tuple[int | None, ...]:
        """Return the exit codes that an agent may have at the job's end."""
        end = {
            Phase.FINISHED: FINISHED,
            Phase.FAILED: GIVEN_UP,
            Phase.STOPPED: DO_NOT_REQUEUE,
        }[Phase(phase)]
        return (end, None, *((DO_NOT_REQUEUE, TERMINATED) if self._leaves else ()))


def _is_done(wish: Wish, plan: Plan, stored: Collection[int]) -> bool:
    match wish.kind:
        case WishKind.DRAIN:
            return plan.phase != Phase.GATHER and plan.machine_of(*wish.life) is None
        case WishKind.CHECKPOINT:
            return plan.phase == Phase.STOPPED and plan.reached in stored
        case _:
            return plan.phase == Phase.STOPPED
