"""What has happened on one machine so far, counted as its agent's event log tells it.

Written in the agent's event loop, one addition an event; read as a copy by whoever is asked.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field
from functools import singledispatchmethod
from typing import Final

from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Plan
from castor_policy.recovery import Tier
from castor_records.events.event import Event
from castor_records.events.failures import Corrupt, Resumed, Retrieved
from castor_records.events.storing import Persisted, PersistFailed, StoreBack, StoreLost
from castor_records.events.training import (
    CheckpointCompleted,
    CheckpointLeftOut,
    IterationEnded,
    LinkMeasured,
    Slow,
)
from castor_runtime.metrics.outage_clock import OutageClock

BUCKETS_S: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0)
"""Upper bounds of an iteration's time."""

REDONE, STALL = "iterations_redone", "checkpoint_stall"
FAILURE = "_failure"
"""Ends the cause of an outage; before it stands the kind."""

COMPLETE, LEFT_OUT = "complete", "left_out"
WRITTEN, NOT_WRITTEN = "written", "failed"


@dataclass(slots=True)
class Counts:
    """All that is counted; times are seconds, on the agent's steady clock where they are moments.

    Attributes:
        iteration: the newest that ended here.
        iterations: that ended here, those that were done again too.
        iterations_redone: of them, those that had ended here before.
        iteration_buckets: how many took up to each of `BUCKETS_S`, and more.
        iteration_s: what all of them took.
        slow_s: what ranks here that are named as slow cost in an iteration, by rank.
        complete: the newest iteration that is complete in memory on every rank.
        complete_at_s: when that was heard; None: never.
        checkpoints: by what became of them.
        checkpoint_s: from hand-over to completion, of all.
        stall_s: training waited for checkpoints.
        sent_bytes: checkpoints to other machines' memory.
        copied: parts of own ranks that were copied into own memory, by rank.
        fetched_bytes: parts that came from peers.
        restored: parts that own ranks loaded, by tier.
        bandwidth_bps: bits a second to the machines that hold copies; 0: not measured.
        recoveries: by kind and tier.
        recovery_s: by kind and phase.
        lost_s: time that went into no new iteration, by cause; see `castor_runtime.metrics.tally`.
        corrupt: damaged parts that were met.
        persists: shares of persistent checkpoints by what became of them.
        persist_s: what writing took.
        persisted: ranks' parts that were written.
        store_reachable: whether the store answers.
        training_s: since training began here.
        outage_s: for how long training has stood; 0 while it goes on.
    """

    iteration: int = 0
    iterations: int = 0
    iterations_redone: int = 0
    iteration_buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    iteration_s: float = 0.0
    slow_s: dict[int, float] = field(default_factory=dict)
    complete: int = 0
    complete_at_s: float | None = None
    checkpoints: Counter[str] = field(default_factory=Counter)
    checkpoint_s: float = 0.0
    stall_s: float = 0.0
    sent_bytes: int = 0
    copied: Counter[int] = field(default_factory=Counter)
    fetched_bytes: int = 0
    restored: Counter[tuple[int, str]] = field(default_factory=Counter)
    bandwidth_bps: float = 0.0
    recoveries: Counter[tuple[str, str]] = field(default_factory=Counter)
    recovery_s: dict[tuple[str, str], float] = field(default_factory=dict)
    lost_s: dict[str, float] = field(default_factory=dict)
    corrupt: int = 0
    persists: Counter[str] = field(default_factory=Counter)
    persist_s: float = 0.0
    persisted: int = 0
    store_reachable: bool = True
    training_s: float = 0.0
    outage_s: float = 0.0

    @property
    def effective_ratio(self) -> float | None:
        """Share of the time since training began here that went into new iterations."""
        if self.training_s <= 0:
            return None
        lost_s = sum(self.lost_s.values()) + self.outage_s
        return min(1.0, max(0.0, 1.0 - lost_s / self.training_s))


class Tally:
    """Counts for one agent.

    Args:
        spec: the job.
    """

    def __init__(self, spec: JobSpec) -> None:
        self._ranks = spec.ranks_per_machine
        self._counts = Counts()
        self._clock = OutageClock()
        self._begun_s: float | None = None
        self._over_s: float | None = None
        self._redone_until = 0
        self._stalls: dict[int, float] = {}
        self._lock = threading.Lock()

    def read(self, now_s: float) -> Counts:
        """Return a copy, as of now."""
        with self._lock:
            now_s = now_s if self._over_s is None else self._over_s
            found = deepcopy(self._counts)
            found.training_s = 0.0 if self._begun_s is None else now_s - self._begun_s
            found.outage_s = self._clock.open_s(now_s)
        return found

    def plan(self, plan: Plan, now_s: float) -> None:
        """Take in what the plan says now."""
        with self._lock:
            self._clock.plan(plan, now_s)
            if plan.is_over:
                self._over_s = now_s

    def take(self, event: Event, now_s: float) -> None:
        """Take in a line of the agent's event log."""
        with self._lock:
            self._take(event, now_s)

    @singledispatchmethod
    def _take(self, event: Event, now_s: float) -> None:
        """Take one in; what nothing is registered for is not counted."""

    @_take.register(CheckpointLeftOut)
    def _left_out(self, event: CheckpointLeftOut, _: float) -> None:
        if self._is_first(event.rank):
            self._counts.checkpoints[LEFT_OUT] += 1

    @_take.register(Resumed)
    def _resumed(self, event: Resumed, now_s: float) -> None:
        self._begun_s = now_s if self._begun_s is None else self._begun_s
        self._clock.resumed(event.generation or 0, now_s)
        self._counts.slow_s.clear()

    @_take.register(Slow)
    def _slow(self, event: Slow, _: float) -> None:
        self._counts.slow_s.pop(event.rank, None)
        if not event.over:
            self._counts.slow_s[event.rank] = event.costs_s

    @_take.register(LinkMeasured)
    def _measured(self, event: LinkMeasured, _: float) -> None:
        self._counts.bandwidth_bps = event.agreed_bandwidth_bps or event.bandwidth_bps or 0.0

    @_take.register(Corrupt)
    def _corrupt(self, _event: Corrupt, _: float) -> None:
        self._counts.corrupt += 1

    @_take.register(Persisted)
    def _persisted(self, event: Persisted, _: float) -> None:
        self._counts.persists[WRITTEN] += 1
        self._counts.persist_s += event.seconds or 0.0
        self._counts.persisted += self._ranks

    @_take.register(PersistFailed)
    def _persist_failed(self, _event: PersistFailed, _: float) -> None:
        self._counts.persists[NOT_WRITTEN] += 1

    @_take.register(StoreLost)
    @_take.register(StoreBack)
    def _store(self, event: StoreLost | StoreBack, _: float) -> None:
        self._counts.store_reachable = isinstance(event, StoreBack)

    def _is_first(self, rank: int) -> bool:
        """Whether this is the machine's first rank, which speaks for all of them."""
        return rank % self._ranks == 0

    @_take.register(IterationEnded)
    def _ended(self, event: IterationEnded, now_s: float) -> None:
        if not self._is_first(event.rank):
            return
        counts, took_s = self._counts, event.seconds or 0.0
        counts.iterations += 1
        counts.iteration_s += took_s
        counts.iteration_buckets[bisect_left(BUCKETS_S, took_s)] += 1
        outage = self._clock.ended(event.generation, now_s)
        if outage is not None:
            counts.recoveries[outage.kind, outage.tier] += 1
            for phase, seconds in outage.seconds.items():
                key = (outage.kind, str(phase))
                counts.recovery_s[key] = counts.recovery_s.get(key, 0.0) + seconds
            self._lose(outage.kind + FAILURE, outage.lost_s)
        if event.iteration <= counts.iteration:
            self._redone_until = max(self._redone_until, counts.iteration)
        if event.iteration <= self._redone_until:
            counts.iterations_redone += 1
            self._lose(REDONE, took_s)
        counts.iteration = event.iteration

    @_take.register(CheckpointCompleted)
    def _completed(self, event: CheckpointCompleted, now_s: float) -> None:
        counts = self._counts
        counts.sent_bytes += event.sent_bytes or 0
        counts.copied[event.rank] += 1
        if event.iteration > counts.complete or self._is_first(event.rank):
            counts.complete, counts.complete_at_s = event.iteration, now_s
        # Ranks wait beside each other: a machine's stall is that of its slowest.
        blocked_s, known_s = event.blocked_s or 0.0, self._stalls.get(event.iteration, 0.0)
        if blocked_s > known_s:
            self._stalls[event.iteration] = blocked_s
            counts.stall_s += blocked_s - known_s
            if event.iteration > self._redone_until:  # else it is within what is done again
                self._lose(STALL, blocked_s - known_s)
        if self._is_first(event.rank):
            counts.checkpoints[COMPLETE] += 1
            counts.checkpoint_s += event.seconds or 0.0
            for old in [one for one in self._stalls if one < event.iteration - 1]:
                del self._stalls[old]

    @_take.register(Retrieved)
    def _retrieved(self, event: Retrieved, now_s: float) -> None:
        counts = self._counts
        counts.fetched_bytes += event.bytes or 0
        if event.own and event.rank is not None:
            self._clock.retrieved(event.generation or 0, now_s)
            tier = (event.source or "").partition(":")[0]
            if tier in (Tier.OWN_MEMORY, Tier.STORAGE):
                counts.restored[event.rank, tier] += 1

    def _lose(self, cause: str, seconds: float) -> None:
        self._counts.lost_s[cause] = self._counts.lost_s.get(cause, 0.0) + seconds
