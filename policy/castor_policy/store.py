"""What the agents need of a store: leases, compare-and-set transactions, watches, fencing.

The runtime's store is etcd, the simulator's a model of it; one contract test holds both to what is
written here. The rules:

1. The store counts its changes: every transaction that changes anything takes the next *revision*,
   and all its changes bear that one.
2. A key lives from its creation to its deletion; `create_revision` names that life. A key deleted
   and put again has another one, so that `Compare` fences off whoever still means the old life
   (Gemini sec. 6.2: a root that lost its lease must not act).
3. A lease that is not kept alive ends, at its time or somewhat later; its keys then vanish, all at
   one revision. An outage of the store ends no lease: once it is back, every lease has its whole
   time again.
4. A watch sees every change of its prefix from a revision on, in order, none left out and none
   twice, the changes of one transaction together; or it raises. It raises, too, where the store
   has yet to come to the revision before: it has lost data, and would show nothing until then.
   Of several names and prefixes that are followed together each is in order by itself.
5. A store that lost its data, or was restored from a backup, is another one: its revision is below
   one that was seen before the request was sent, or its cluster's id has changed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

MAX_OPERATIONS = 128
"""Most revisions compared, and most operations, in one transaction: etcd takes no more."""


class StoreUnavailableError(Exception):
    """The store did not answer in time, or a watch can't go on; whether a write was made is open.

    After a failed `transact` or `revoke` read the keys again: it may or may not have been carried
    out. After a failed `watch` read the prefix again and watch from there.
    """


class StoreFullError(StoreUnavailableError):
    """The store has no space left: it takes no writes and grants no lease, until there is room.

    Reads, deletions and the renewal of leases go on.
    """


class StoreRefusedError(StoreUnavailableError):
    """The store lets us not in as we came: who starts something says so and ends.

    What runs already goes on trying: a password may be set right again.
    """


class HistoryLostError(StoreUnavailableError):
    """A watch can't go on: its changes were compacted away, or the store has gone back."""


class LeaseLostError(Exception):
    """The lease has ended, or never was; all its keys are gone."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key as it stands.

    Attributes:
        key: its name.
        value: its value.
        create_revision: revision that began this life of the key; at least 1.
        mod_revision: revision of its last change.
        lease: the lease that it lives by; None: it stays until it is deleted.
    """

    key: str
    value: str
    create_revision: int
    mod_revision: int
    lease: int | None


@dataclass(frozen=True, slots=True)
class Compare:
    """Holds if the key stands as named; at least one revision must be given.

    Attributes:
        key: which.
        create_revision: its current life must have begun at this revision; 0: there is no such key.
        mod_revision: its last change must be this one, so that what was decided on one value is not
            written over another; 0: there is no such key.

    Raises:
        ValueError: neither revision, or a negative one.
    """

    key: str
    create_revision: int | None = None
    mod_revision: int | None = None

    def __post_init__(self) -> None:
        _require_name("key", self.key)
        if self.create_revision is None and self.mod_revision is None:
            raise ValueError("compare create_revision, mod_revision or both")
        for name in ("create_revision", "mod_revision"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must be 0 (no key) or more: {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Put:
    """Set a key; from now on it lives by `lease`, or by none, whatever it lived by before."""

    key: str
    value: str
    lease: int | None = None

    def __post_init__(self) -> None:
        _require_name("key", self.key)
        if self.lease is not None and self.lease <= 0:
            raise ValueError(f"lease must be one that `grant` returned, or None: {self.lease}")


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a key; deleting a key that is not there changes nothing and is no error."""

    key: str

    def __post_init__(self) -> None:
        _require_name("key", self.key)


@dataclass(frozen=True, slots=True)
class DeletePrefix:
    """Delete every key that begins with `prefix`, however many there are: one operation."""

    prefix: str

    def __post_init__(self) -> None:
        require_prefix(self.prefix)


@dataclass(frozen=True, slots=True)
class Txn:
    """Carry out all operations if all compares hold, else none.

    Attributes:
        compares: what must hold; empty: always.
        operations: what is done then, at one revision; each key at most once.

    Raises:
        ValueError: a key in two operations (a prefix counts as all keys that begin with it), no
            operation, or more than `MAX_OPERATIONS` of them, or of revisions to compare.
    """

    compares: tuple[Compare, ...]
    operations: tuple[Put | Delete | DeletePrefix, ...]

    def __post_init__(self) -> None:
        if not self.operations:
            raise ValueError("a transaction needs at least one operation; to read use get_prefix")
        keys = [o.key for o in self.operations if not isinstance(o, DeletePrefix)]
        prefixes = [o.prefix for o in self.operations if isinstance(o, DeletePrefix)]
        twice = len(set(keys)) < len(keys) or any(
            name.startswith(prefix)
            for at, prefix in enumerate(prefixes)
            for name in (*keys, *prefixes[:at], *prefixes[at + 1 :])
        )
        if twice:
            named = sorted([*keys, *prefixes])
            raise ValueError(f"name each key in one operation of a transaction only: {named}")
        revisions = [
            revision
            for compare in self.compares
            for revision in (compare.create_revision, compare.mod_revision)
            if revision is not None
        ]
        if max(len(revisions), len(self.operations)) > MAX_OPERATIONS:
            raise ValueError(f"split the transaction: at most {MAX_OPERATIONS} compares/operations")


@dataclass(frozen=True, slots=True)
class TxnResult:
    """What came of a transaction.

    Attributes:
        succeeded: the compares held and the operations were carried out.
        revision: the store's revision after it; if anything changed, the change's own, and thus
            the `create_revision` of each key that it created.
    """

    succeeded: bool
    revision: int


@dataclass(frozen=True, slots=True)
class StoreEvent:
    """A key was put or deleted.

    Attributes:
        key: which.
        value: what it was set to; None: it was deleted, by an operation or with its lease.
        create_revision: revision that began this life of the key; 0 for a deletion.
        mod_revision: revision of this change.
    """

    key: str
    value: str | None
    create_revision: int
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Keys:
    """Which keys are read or watched.

    Attributes:
        names: keys by their whole names.
        prefixes: all keys that begin with one of these.

    Raises:
        ValueError: neither is given, or one of them is empty or holds NUL.
    """

    names: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.names or self.prefixes):
            raise ValueError("name at least one key or prefix")
        for name in self.names:
            _require_name("key", name)
        for prefix in self.prefixes:
            require_prefix(prefix)

    @classmethod
    def under(cls, prefix: str) -> Keys:
        """Return all that begin with a prefix."""
        return cls(prefixes=(prefix,))

    def parts(self) -> tuple[str, ...]:
        """Return the names and prefixes, each of which is watched by itself, in one order."""
        return (*sorted(self.names), *self.prefixes)

    def part_of(self, key: str) -> str | None:
        """Return the name or the prefix that a key is watched by; None if it is not."""
        if key in self.names:
            return key
        return next((prefix for prefix in self.prefixes if key.startswith(prefix)), None)


def require_prefix(prefix: str) -> None:
    """Refuse the empty prefix: a read or watch of everything would see other jobs' keys.

    Raises:
        ValueError: the prefix is empty or holds NUL.
    """
    _require_name("prefix", prefix)


def require_revision(from_revision: int) -> None:
    """Refuse a watch without a place to begin: it would have gaps.

    Raises:
        ValueError: the revision is not positive.
    """
    if from_revision < 1:
        raise ValueError(f"watch from a revision of 1 or more: {from_revision}")


def _require_name(what: str, name: str) -> None:
    if not name or "\0" in name:
        raise ValueError(f"a {what} must be some text without NUL: {name!r}")


class Store(Protocol):
    """A store as an agent sees it. Every call may raise StoreUnavailableError, soon if it must.

    One store serves one event loop. No call hangs: each answers or raises within a bound that is
    the store's own (`watch` aside, which waits for changes, not for the store).
    """

    async def grant(self, ttl_s: float) -> int:
        """Return a new lease that ends once it has not been kept alive for `ttl_s`.

        The store may take a longer time than asked (etcd: whole seconds, and no less than one and
        a half of its election timeouts); `keep_alive` tells the time granted.
        """
        ...

    async def keep_alive(self, lease: int) -> float:
        """Renew the lease and return the seconds that it has from now.

        Raises:
            LeaseLostError: it has ended; its keys are gone, and so is its holder's claim.
        """
        ...

    async def revoke(self, lease: int) -> None:
        """End the lease and delete its keys at one revision; an ended one is no error."""
        ...

    async def transact(self, txn: Txn) -> TxnResult:
        """Carry out the transaction, all or nothing.

        Raises:
            LeaseLostError: a put names a lease that has ended; nothing was changed.
        """
        ...

    async def get_prefix(self, prefix: str) -> tuple[list[KeyValue], int]:
        """Return all keys that begin with `prefix`, by name, and the store's revision as of then.

        The read is linearizable: it shows every transaction that was answered before it began.
        """
        ...

    async def read(self, keys: Keys) -> tuple[list[KeyValue], int]:
        """Return these keys, by name, all as of one revision, and that; linearizable as well."""
        ...

    def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[list[StoreEvent], None]:
        """Yield the changes of keys that begin with `prefix`, from `from_revision` (included) on.

        After `get_prefix` watch from its revision + 1. A list holds whole revisions, one or more,
        in order. The generator never ends by itself; close it with `aclose` (a cancelled task
        does). It raises StoreUnavailableError when the connection is lost or the store is
        closed.

        Raises:
            HistoryLostError: what it was to show has been compacted away, or the store has yet to
                come to `from_revision` - 1.
        """
        ...

    def follow(self, keys: Keys, from_revision: int) -> AsyncGenerator[list[StoreEvent], None]:
        """Yield the changes of these keys as `watch` does, each part of `keys` in its own order.

        What one part shows says nothing of how far another has come.

        Raises:
            HistoryLostError: see `watch`.
        """
        ...

    def cluster(self) -> int:
        """Return the id of the cluster that has answered last; 0 before the first answer."""
        ...

    async def close(self) -> None:
        """Let go of the connection; leases live on until they end. Calls after it raise."""
        ...
