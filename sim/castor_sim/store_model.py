"""The store of `castor_policy.store` as a model: etcd's semantics, an explicit clock, no waiting.

`StoreModel` is synchronous and takes the time with each call, so that a simulation drives it from
its own clock; `castor_sim.model_store` makes a `Store` of it.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_left, insort
from dataclasses import dataclass
from heapq import heappop, heappush

from castor_policy.store import (
    Compare,
    Delete,
    DeletePrefix,
    HistoryLostError,
    Keys,
    KeyValue,
    LeaseLostError,
    Put,
    StoreEvent,
    StoreFullError,
    StoreUnavailableError,
    Txn,
    TxnResult,
    require_revision,
)


@dataclass(slots=True)
class _Lease:
    ttl_s: float
    renewed_s: float
    delay_s: float
    keys: set[str]

    def end_s(self) -> float:
        return max(self.renewed_s, self.renewed_s + self.ttl_s + self.delay_s)


class StoreModel:
    """A deterministic store.

    Every call that takes `now_s` first ends the leases that are due, as `advance` does. Time must
    not go backwards. Between `stop` and `start` each call raises StoreUnavailableError and no lease
    ends.

    Args:
        expiry_delay_s: how much later than its time a lease ends by itself (etcd looks twice a
            second); negative: earlier, which a correct store never does and a skewed clock may.
            `delay_expiry` sets it for one lease.
    """

    __slots__ = (
        "_cluster",
        "_compacted",
        "_ends",
        "_events",
        "_expiry_delay_s",
        "_full",
        "_keys",
        "_leases",
        "_names",
        "_next_end_s",
        "_next_lease",
        "_now_s",
        "_revision",
        "_revisions",
        "_running",
    )

    def __init__(self, *, expiry_delay_s: float = 0.0) -> None:
        self._keys: dict[str, KeyValue] = {}
        self._names: list[str] = []  # the keys in order: those of a prefix lie together
        self._leases: dict[int, _Lease] = {}
        self._next_lease = 1
        # The first change has revision 2, as in etcd, whose empty store stands at 1.
        self._revision = 1
        self._compacted = 0
        self._events: list[StoreEvent] = []
        self._revisions: list[int] = []  # of each event: what `events` bisects
        self._now_s = 0.0
        self._ends: list[tuple[float, int]] = []  # a heap; stale entries are skipped
        self._next_end_s = math.inf
        self._expiry_delay_s = expiry_delay_s
        self._running = True
        self._full = False
        self._cluster = 1

    @property
    def cluster(self) -> int:
        """The id of this store; another one after `lose_data`, if that is told."""
        return self._cluster

    @property
    def now_s(self) -> float:
        """The time of the last call."""
        return self._now_s

    @property
    def revision(self) -> int:
        """The revision of the last change; 1 in a new store."""
        return self._revision

    @property
    def running(self) -> bool:
        """Whether calls are answered."""
        return self._running

    def next_end_s(self) -> float:
        """Return when the next lease ends unless it is renewed; infinity if none does."""
        return self._next_end_s if self._running else math.inf

    def advance(self, now_s: float) -> None:
        """Let time pass: end each lease that is due, in order of time, one revision a lease.

        Raises:
            ValueError: time went backwards.
        """
        if now_s < self._now_s:
            raise ValueError(f"time must not go backwards: {now_s} after {self._now_s}")
        self._now_s = now_s
        while self._running and now_s >= self._next_end_s:
            self._end(self._ends[0][1])
            self._find_next_end()

    def stop(self, now_s: float) -> None:
        """Make the store unreachable to all, as when its process dies; its data are kept."""
        self.advance(now_s)
        self._running = False

    def start(self, now_s: float) -> None:
        """Bring the store back; every lease has its whole time again, as after etcd's restart."""
        self.advance(now_s)
        if not self._running:
            self._running = True
            for number, lease in self._leases.items():
                lease.renewed_s = now_s
                self._schedule(number)
            self._find_next_end()

    def fill(self, *, full: bool) -> None:
        """Take the store's space away, or give it back: without it there are no writes."""
        self._full = full

    def backup(self) -> StoreModel:
        """Return a copy of everything, for `lose_data`."""
        return copy.deepcopy(self)

    def lose_data(self, now_s: float, backup: StoreModel | None = None, *, other: bool) -> None:
        """Go back to a backup, or to an empty store without one; watches can't go on.

        Leases of the backup have their whole time again. Numbers of leases are never used twice, as
        etcd draws them at random.

        Args:
            now_s: the time.
            backup: what `backup` returned; None: everything is gone.
            other: whether the store has another cluster's id from now on.
        """
        self.advance(now_s)
        kept = backup.backup() if backup is not None else StoreModel()
        self._keys, self._names = kept._keys, kept._names
        self._leases, self._events = kept._leases, kept._events
        self._revision, self._revisions = kept._revision, kept._revisions
        self._compacted = kept._compacted
        self._ends = []
        for number, lease in self._leases.items():
            lease.renewed_s = now_s
            self._schedule(number)
        self._cluster += other
        self._find_next_end()

    def grant(self, ttl_s: float, now_s: float) -> int:
        """Return a new lease of `ttl_s`; leases are numbered from 1."""
        self._enter(now_s)
        self._require_space()
        if not ttl_s > 0:
            raise ValueError(f"a lease needs a positive time: ttl_s = {ttl_s}")
        number = self._next_lease
        self._next_lease += 1
        self._leases[number] = _Lease(ttl_s, now_s, self._expiry_delay_s, set())
        self._schedule(number)
        self._find_next_end()
        return number

    def keep_alive(self, lease: int, now_s: float) -> float:
        """Renew the lease and return its time in seconds; LeaseLostError if it has ended."""
        self._enter(now_s)
        held = self._lease(lease)
        held.renewed_s = now_s
        self._schedule(lease)
        self._find_next_end()
        return held.ttl_s

    def revoke(self, lease: int, now_s: float) -> None:
        """End the lease; an ended one is no error."""
        self._enter(now_s)
        if lease in self._leases:
            self._end(lease)
            self._find_next_end()

    def expire(self, lease: int, now_s: float) -> None:
        """End the lease at once though its time is not over, whether the store runs or not.

        Raises:
            LeaseLostError: it has ended already.
        """
        self.advance(now_s)
        self._lease(lease)
        self._end(lease)
        self._find_next_end()

    def delay_expiry(self, lease: int, delay_s: float) -> None:
        """Let this lease end `delay_s` after its time (negative: before), from now on.

        Raises:
            LeaseLostError: it has ended already.
        """
        self._lease(lease).delay_s = delay_s
        self._schedule(lease)
        self._find_next_end()

    def transact(self, txn: Txn, now_s: float) -> TxnResult:
        """Carry out all operations if all compares hold, else none; see `Store.transact`."""
        self._enter(now_s)
        if not all(self._holds(compare) for compare in txn.compares):
            return TxnResult(succeeded=False, revision=self._revision)
        for operation in txn.operations:
            if isinstance(operation, Put) and operation.lease is not None:
                self._lease(operation.lease)
        if any(isinstance(operation, Put) for operation in txn.operations):
            self._require_space()
        revision = self._revision + 1
        for operation in txn.operations:
            match operation:
                case Put():
                    self._put(operation, revision)
                case Delete(key):
                    self._delete(key, revision)
                case DeletePrefix(prefix):
                    for key in self._under(prefix):
                        self._delete(key, revision)
        return TxnResult(succeeded=True, revision=self._revision)

    def get_prefix(self, prefix: str, now_s: float) -> tuple[list[KeyValue], int]:
        """Return the keys that begin with `prefix`, by name, and the revision."""
        return self.read(Keys.under(prefix), now_s)

    def read(self, keys: Keys, now_s: float) -> tuple[list[KeyValue], int]:
        """Return these keys, by name, and the revision."""
        self._enter(now_s)
        found = {name for name in keys.names if name in self._keys}
        for prefix in keys.prefixes:
            found.update(self._under(prefix))
        return [self._keys[key] for key in sorted(found)], self._revision

    def _under(self, prefix: str) -> list[str]:
        """Return the names of the keys that begin with a prefix, in order."""
        first = last = bisect_left(self._names, prefix)
        while last < len(self._names) and self._names[last].startswith(prefix):
            last += 1
        return self._names[first:last]

    def events(self, keys: Keys, from_revision: int, now_s: float) -> list[StoreEvent]:
        """Return what happened to these keys since `from_revision`, included.

        Raises:
            StoreUnavailableError: the store is stopped.
            HistoryLostError: that revision was compacted away, or the one before is yet to come.
        """
        self._enter(now_s)
        require_revision(from_revision)
        if from_revision < self._compacted:
            raise HistoryLostError(f"revision {from_revision} was compacted; read again")
        if from_revision > self._revision + 1:
            raise HistoryLostError(f"the store is at {self._revision}, before {from_revision - 1}")
        first = bisect_left(self._revisions, from_revision)
        return [event for event in self._events[first:] if keys.part_of(event.key) is not None]

    def compact(self, revision: int) -> None:
        """Forget what happened before `revision`; keys as they stand are not touched.

        Raises:
            ValueError: the revision is yet to come.
        """
        if revision > self._revision:
            raise ValueError(f"compact at most up to the revision {self._revision}: {revision}")
        self._compacted = max(self._compacted, revision)
        kept = bisect_left(self._revisions, self._compacted)
        del self._events[:kept]
        del self._revisions[:kept]

    def _enter(self, now_s: float) -> None:
        self.advance(now_s)
        if not self._running:
            raise StoreUnavailableError("the store is stopped")

    def _require_space(self) -> None:
        if self._full:
            raise StoreFullError("the store has no space")

    def _lease(self, lease: int) -> _Lease:
        held = self._leases.get(lease)
        if held is None:
            raise LeaseLostError(f"lease {lease} has ended")
        return held

    def _schedule(self, lease: int) -> None:
        """Note when a lease ends; what was noted of it before counts no longer."""
        heappush(self._ends, (self._leases[lease].end_s(), lease))

    def _find_next_end(self) -> None:
        ends = self._ends
        while ends and not self._is_end_of(*ends[0]):
            heappop(ends)
        self._next_end_s = ends[0][0] if ends else math.inf

    def _is_end_of(self, end_s: float, lease: int) -> bool:
        held = self._leases.get(lease)
        return held is not None and held.end_s() == end_s

    def _end(self, lease: int) -> None:
        revision = self._revision + 1
        for key in sorted(self._leases[lease].keys):
            self._delete(key, revision)
        del self._leases[lease]

    def _holds(self, compare: Compare) -> bool:
        current = self._keys.get(compare.key)
        created = 0 if current is None else current.create_revision
        changed = 0 if current is None else current.mod_revision
        return compare.create_revision in (None, created) and compare.mod_revision in (
            None,
            changed,
        )

    def _put(self, put: Put, revision: int) -> None:
        before = self._keys.get(put.key)
        created = revision if before is None else before.create_revision
        if before is None:
            insort(self._names, put.key)
        elif before.lease is not None:
            self._leases[before.lease].keys.discard(put.key)
        if put.lease is not None:
            self._leases[put.lease].keys.add(put.key)
        self._keys[put.key] = KeyValue(put.key, put.value, created, revision, put.lease)
        self._record(StoreEvent(put.key, put.value, created, revision))

    def _delete(self, key: str, revision: int) -> None:
        before = self._keys.pop(key, None)
        if before is not None:
            del self._names[bisect_left(self._names, key)]
            if before.lease is not None:
                self._leases[before.lease].keys.discard(key)
            self._record(StoreEvent(key, None, 0, revision))

    def _record(self, event: StoreEvent) -> None:
        self._revision = event.mod_revision
        self._events.append(event)
        self._revisions.append(event.mod_revision)
