"""What a worker does of its own accord about the store and its peers.

It tells whom of those around it it cannot reach, and deposes a root that is lost (`neighbours`).
It stands for root where there is none. It stops its trainers when it is cut off from the store and
from every peer for as long as its lease can have lasted, for then its place may have been given
away. Where only the store is silent it goes on: peers that answer know of no newer plan.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from castor_policy.agents.effects import (
    Campaign,
    Depose,
    Exit,
    PingPeers,
    Report,
    StopTrainers,
    WatchPeers,
    WorkerEffect,
)
from castor_policy.agents.event_table import EventTable
from castor_policy.agents.events import (
    NameTaken,
    PeerFound,
    PeerLost,
    PeersAnswered,
    RootChanged,
    SessionFailed,
    SessionLost,
    SessionRenewed,
    StoreLost,
    StoreTrouble,
)
from castor_policy.agents.evidence import SightKind
from castor_policy.agents.exit_codes import BEGIN_AGAIN, REFUSED
from castor_policy.agents.plan import Phase
from castor_policy.agents.worker_state import WorkerState


class WorkerContact(WorkerState):
    """One life of one agent, as far as the store and the peers are concerned."""

    _takes: ClassVar[EventTable[WorkerEffect]] = EventTable()

    # ---- the session -------------------------------------------------------------------------

    @_takes.on(SessionRenewed)
    def _session_renewed(self, event: SessionRenewed, _: float) -> list[WorkerEffect]:
        return [*self._contact.renewed(event.sent_s)]

    @_takes.on(SessionLost)
    def _session_lost(self, _: SessionLost, __: float) -> list[WorkerEffect]:
        self._contact.in_session = False
        return []

    @_takes.on(StoreLost)
    def _store_lost(self, _: StoreLost, __: float) -> list[WorkerEffect]:
        return [*self._contact.lost()]

    @_takes.on(StoreTrouble)
    def _store_trouble(self, event: StoreTrouble, _: float) -> list[WorkerEffect]:
        return [*self._contact.trouble(event.about, event.reason)]

    @_takes.on(NameTaken)
    def _name_taken(self, event: NameTaken, _: float) -> list[WorkerEffect]:
        # What is on this machine may be that one's by now: nothing is given back.
        return [StopTrainers(), Exit(REFUSED, f"the lease ended, and {event.by}")]

    @_takes.on(SessionFailed)
    def _session_failed(self, event: SessionFailed, _: float) -> list[WorkerEffect]:
        return [StopTrainers(), Exit(BEGIN_AGAIN, event.reason)]

    @_takes.on(RootChanged)
    def _root_changed(self, event: RootChanged, now_s: float) -> list[WorkerEffect]:
        self._contact.root_changed(event.agent, now_s)
        # Elected after its machine was lost: it is not gone.
        self._root, self._root_is_lost = event.agent, False
        return self._campaign(now_s)

    def _campaign(self, now_s: float) -> list[WorkerEffect]:
        trains = self.machine is not None or (self.plan is None and not self.report.standby)
        return [Campaign()] if self._contact.may_stand(now_s, trains=trains) else []

    # ---- the peers -----------------------------------------------------------------------------

    def _watch_isolation(self, now_s: float) -> list[WorkerEffect]:
        plan = self.plan
        if not self._contact.is_silent or plan is None or plan.phase != Phase.LOAD:
            return []
        if self.machine is None or self._is_over() or len(plan.agents) < 2:
            return []
        if self._contact.is_cut_off(now_s):
            cut_off = "cut off from the store and from every peer; the lease must have expired"
            return [*self._fail(SightKind.ISOLATED, cut_off), StopTrainers()]
        if not self._contact.is_ping_due(now_s):
            return []
        peers = {m: a for m, a in enumerate(plan.addresses) if m != self.machine}
        return [PingPeers(peers)]

    @_takes.on(PeersAnswered)
    def _peers_answered(self, event: PeersAnswered, now_s: float) -> list[WorkerEffect]:
        newest_generation = max(event.generations.values(), default=-1)
        if newest_generation < 0:
            return []
        self._contact.peers_answered(now_s)
        if newest_generation <= self.generation or self._is_over():
            return []
        behind = f"a peer knows generation {newest_generation}; this machine was left behind"
        return [*self._fail(SightKind.ISOLATED, behind), StopTrainers()]

    # ---- the machines around it ------------------------------------------------------------------

    @_takes.on(PeerLost)
    def _peer_lost(self, event: PeerLost, _: float) -> list[WorkerEffect]:
        if not self._neighbours.lost(event.incarnation):
            return []
        self._root_is_lost |= self._neighbours.has_lost(self._root)
        return [*self._look_around(), *self._depose()]

    @_takes.on(PeerFound)
    def _peer_found(self, event: PeerFound, _: float) -> list[WorkerEffect]:
        return self._look_around() if self._neighbours.found(event.incarnation) else []

    def _look_around(self) -> list[WorkerEffect]:
        """Watch those who are around this machine now, and say whom it cannot reach."""
        within_s = self.spec.limits.unreached_s
        if not within_s:
            return []
        told: list[WorkerEffect] = []
        if self._watched != self._neighbours.watched:
            self._watched = self._neighbours.watched
            told.append(WatchPeers(self._watched, within_s))
        if self.report.unreached != self._neighbours.unreached:
            self.report = replace(self.report, unreached=self._neighbours.unreached)
            told.append(Report(self.report))
        return told

    def _depose(self) -> list[WorkerEffect]:
        self._root_is_lost &= self._neighbours.has_lost(self._root)
        return [Depose(self._root)] if self._root_is_lost else []
