"""A job in the store while its launcher runs it: written there, followed, and taken out again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace

from castor_configs.errors import InputError
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.plan import Phase, Plan
from castor_policy.agents.store_keys import accounts_prefix, job_prefix, plan_key, spec_key
from castor_policy.store import Compare, DeletePrefix, Put, Store, StoreUnavailableError, Txn
from castor_runtime.launcher.following import AGAIN_S, follow
from castor_runtime.launcher.job_view import JobView, read_view


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

    def _put(self) -> Put:
        return Put(spec_key(self._spec.job), self._spec.to_json())

    async def write(self) -> None:
        """Put the job into the store, for its agents to find.

        Raises:
            InputError: the store does not answer, or has a job of that name.
        """
        key = spec_key(self._spec.job)
        try:
            if self._spec.resumes:
                await self._clear_own_past()
            made = await self._store.transact(Txn((Compare(key, 0),), (self._put(),)))
        except StoreUnavailableError as error:
            raise InputError(f"the store cannot be asked: {error}", key="--store") from error
        if not made.succeeded:
            raise InputError(
                f"the store has a job {self._spec.job!r} already: choose another name", key="--job"
            )

    async def _clear_own_past(self) -> None:
        """Take out what the run has left in a store that outlived its launcher."""
        view = await read_view(self._store, self._spec.job)
        if view.spec is None or view.spec.run != self._spec.run:
            return
        if view.reports:
            names = ", ".join(sorted(view.reports))
            raise InputError(
                f"agents of this run are alive ({names}): end them first, or let them go on",
                key="--store",
            )
        await self.forget()

    async def stop(self, reason: str, wait_s: float) -> None:
        """Tell the job's agents that the user ends it, and wait until they are gone.

        Args:
            reason: what they say.
            wait_s: at most so long; one that was stopped, or is cut off, never goes.
        """
        with contextlib.suppress(StoreUnavailableError, TimeoutError):
            async with asyncio.timeout(wait_s):
                view = await read_view(self._store, self._spec.job)
                nobody = ("",) * self._spec.machines
                plan = view.plan or Plan(1, 0, Phase.GATHER, nobody, nobody)
                if plan.phase in (Phase.GATHER, Phase.LOAD):
                    stopped = replace(plan, phase=Phase.STOPPED, reason=reason)
                    put = Put(plan_key(self._spec.job), stopped.to_json())
                    await self._store.transact(Txn((), (put,)))
                while view.reports:
                    await asyncio.sleep(AGAIN_S)
                    view = await read_view(self._store, self._spec.job)

    async def forget(self) -> None:
        """Take the job out of a store that outlives it, so that its name can be used again."""
        with contextlib.suppress(StoreUnavailableError):
            # Two operations, however many machines the job has had.
            prefixes = job_prefix(self._spec.job), accounts_prefix(self._spec.job)
            await self._store.transact(Txn((), tuple(map(DeletePrefix, prefixes))))

    async def close(self) -> None:
        """Let go of the store."""
        await self._store.close()

    async def follow(self, changed: Callable[[JobView], Awaitable[None]]) -> None:
        """Keep `view` up to date and call `changed` after each change, until cancelled.

        A spec that is gone, or that can't be read, is written again: the store has lost its data.
        """
        await follow(self._store, self._spec.job, read=self._read, changed=changed)

    async def _read(self, view: JobView) -> None:
        self.view = view
        if view.spec is None:
            await self._store.transact(Txn((), (self._put(),)))
            view.spec = self._spec
