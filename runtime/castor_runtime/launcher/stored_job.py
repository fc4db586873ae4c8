"""A job in the store while its launcher runs it: written there, followed, and taken out again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextlib import aclosing

from castor_configs.errors import InputError
from castor_policy.agents.documents import JobSpec, job_prefix, spec_key
from castor_policy.store import Compare, DeletePrefix, Put, Store, StoreUnavailableError, Txn
from castor_runtime.launcher.job_view import JobView, read_view

_AGAIN_S = 0.1


class StoredJob:
    """The keys of one job.

    Args:
        store: where they are.
        spec: the job.
    """

    def __init__(self, store: Store, spec: JobSpec) -> None:
        self.view: JobView | None = None
        """As it was last seen by `follow`; None before."""
        self._store = store
        self._spec = spec

    async def write(self) -> None:
        """Put the job into the store, for its agents to find.

        Raises:
            InputError: the store does not answer, or has a job of that name.
        """
        key = spec_key(self._spec.job)
        try:
            made = await self._store.transact(
                Txn((Compare(key, 0),), (Put(key, self._spec.to_json()),))
            )
        except StoreUnavailableError as error:
            raise InputError(f"the store does not answer: {error}", key="--store") from error
        if not made.succeeded:
            raise InputError(
                f"the store has a job {self._spec.job!r} already: choose another name", key="--job"
            )

    async def forget(self) -> None:
        """Take the job out of a store that outlives it, so that its name can be used again."""
        with contextlib.suppress(StoreUnavailableError):
            # One operation, however many machines the job has had.
            await self._store.transact(Txn((), (DeletePrefix(job_prefix(self._spec.job)),)))

    async def follow(self, changed: Callable[[JobView], Awaitable[None]]) -> None:
        """Keep `view` up to date and call `changed` after each change, until cancelled.

        If the store does not answer, in `changed` too, all is read again.

        Raises:
            ValueError: a document of another version of Castor.
        """
        while True:
            try:
                self.view = view = await read_view(self._store, self._spec.job)
                await changed(view)
                changes = self._store.watch(job_prefix(self._spec.job), view.revision + 1)
                async with aclosing(changes):
                    async for events in changes:
                        for event in events:
                            view.apply(event)
                        await changed(view)
            except StoreUnavailableError:
                await asyncio.sleep(_AGAIN_S)
