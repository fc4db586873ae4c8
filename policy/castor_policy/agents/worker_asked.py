"""What a worker does that the job's user or the root asks for: persist, hold, leave."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from castor_policy.agents.effects import Hold, Persist, Report, WorkerEffect
from castor_policy.agents.event_table import EventTable
from castor_policy.agents.events import (
    HoldChanged,
    LeaveAsked,
    PersistChanged,
    PersistEnded,
    WishChanged,
)
from castor_policy.agents.plan import Phase
from castor_policy.agents.worker_contact import WorkerContact


class WorkerAsked(WorkerContact):
    """One life of one agent, as far as it is asked for something beside the plan."""

    _takes: ClassVar[EventTable[WorkerEffect]] = EventTable(WorkerContact._takes)

    # ---- persistent checkpoints ----------------------------------------------------------------

    @_takes.on(PersistChanged)
    def _persist_changed(self, event: PersistChanged, _: float) -> list[WorkerEffect]:
        self._persist = event.iteration
        return self._persisting()

    @_takes.on(PersistEnded)
    def _persist_ended(self, event: PersistEnded, _: float) -> list[WorkerEffect]:
        changed = event.reason != self.report.persist_failure
        self.report = replace(self.report, persist_failure=event.reason)
        if event.everywhere:
            self._persisted = max(self._persisted, event.iteration)
            # While it trains nobody waits for it.
            if self.report.held == event.iteration != self.report.persisted:
                return self._change(persisted=event.iteration)
        if event.in_vain and event.iteration == self.report.held:
            return self._change(in_vain=self.report.in_vain + 1)
        return [Report(self.report)] if changed else []

    def _persisting(self) -> list[WorkerEffect]:
        plan = self.plan
        if self._parts is None or plan is None or self._persist <= plan.iteration:
            return []
        return [Persist(self.generation, self._persist)]

    # ---- what the user asks for ----------------------------------------------------------------

    @_takes.on(HoldChanged)
    def _hold_changed(self, event: HoldChanged, _: float) -> list[WorkerEffect]:
        self._hold = event.generation
        return self._holding()

    def _holding(self) -> list[WorkerEffect]:
        asked = self._parts is not None and self._hold == self.generation
        return [Hold(self.generation)] if asked and not self._is_over() else []

    @_takes.on(WishChanged)
    def _wish_changed(self, event: WishChanged, _: float) -> list[WorkerEffect]:
        return self._leaving.wish_changed(event, is_needed=self._is_needed())

    @_takes.on(LeaveAsked)
    def _leave_asked(self, event: LeaveAsked, now_s: float) -> list[WorkerEffect]:
        self._leaving.told(event.patience_s, now_s)
        return self._leaving.due(now_s, is_needed=self._is_needed())

    def _is_needed(self) -> bool:
        """Whether this machine has a place, or may get it back."""
        gathers = self.plan is not None and self.plan.phase == Phase.GATHER
        return self.machine is not None or gathers
