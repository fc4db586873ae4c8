"""A `castor_policy.store.Store` over a `StoreModel`, with a clock that the caller moves by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from castor_policy.store import (
    Keys,
    KeyValue,
    StoreEvent,
    StoreUnavailableError,
    Txn,
    TxnResult,
)
from castor_sim.store_model import StoreModel


class ModelStore:
    """A `castor_policy.store.Store` over a `StoreModel`; several may share one model.

    For tests, and for jobs in one process. A simulation drives the model itself.

    Args:
        model: the store's state.
        clock: returns the time in seconds.
        poll_s: a watch looks at the model so often; 0: whenever the event loop comes round, which
            keeps that loop busy, and is right where the clock is moved by hand.

    Attributes:
        is_cut: the store cannot be reached by this one alone, for as long as that is so.
    """

    def __init__(
        self, model: StoreModel, clock: Callable[[], float], *, poll_s: float = 0.0
    ) -> None:
        self._model = model
        self._clock = clock
        self._poll_s = poll_s
        self._closed = False
        self.is_cut = False

    async def grant(self, ttl_s: float) -> int:
        """See `Store.grant`."""
        return self._reached().grant(ttl_s, self._clock())

    async def keep_alive(self, lease: int) -> float:
        """See `Store.keep_alive`."""
        return self._reached().keep_alive(lease, self._clock())

    async def revoke(self, lease: int) -> None:
        """See `Store.revoke`."""
        self._reached().revoke(lease, self._clock())

    async def transact(self, txn: Txn) -> TxnResult:
        """See `Store.transact`."""
        return self._reached().transact(txn, self._clock())

    async def get_prefix(self, prefix: str) -> tuple[list[KeyValue], int]:
        """See `Store.get_prefix`."""
        return await self.read(Keys.under(prefix))

    async def read(self, keys: Keys) -> tuple[list[KeyValue], int]:
        """See `Store.read`."""
        return self._reached().read(keys, self._clock())

    def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[list[StoreEvent], None]:
        """See `Store.watch`."""
        return self.follow(Keys.under(prefix), from_revision)

    async def follow(
        self, keys: Keys, from_revision: int
    ) -> AsyncGenerator[list[StoreEvent], None]:
        """See `Store.follow`."""
        while True:
            events = self._reached().events(keys, from_revision, self._clock())
            if events:
                from_revision = events[-1].mod_revision + 1
                yield events
            else:
                await asyncio.sleep(self._poll_s)

    def cluster(self) -> int:
        """See `Store.cluster`."""
        return self._model.cluster

    async def close(self) -> None:
        """See `Store.close`."""
        self._closed = True

    def _reached(self) -> StoreModel:
        if self._closed:
            raise StoreUnavailableError("the store was closed")
        if self.is_cut:
            raise StoreUnavailableError("the store cannot be reached from here")
        return self._model
