"""Follows what the store has of a job, whatever becomes of the connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

from castor_policy.agents.store_keys import job_prefix
from castor_policy.store import Store, StoreUnavailableError
from castor_runtime.launcher.job_view import JobView, read_view

AGAIN_S = 0.1


async def follow(
    store: Store,
    job: str,
    *,
    read: Callable[[JobView], Awaitable[None]],
    changed: Callable[[JobView], Awaitable[None]],
) -> None:
    """Call `changed` with the job as it is after each change, until cancelled.

    Args:
        store: of the job.
        job: its name.
        read: called before it, with a view that was read as a whole.
        changed: called with each. If the store does not answer in one of them, all is read again.
    """
    while True:
        try:
            view = await read_view(store, job)
            await read(view)
            await changed(view)
            async with aclosing(store.watch(job_prefix(job), view.revision + 1)) as changes:
                async for events in changes:
                    for event in events:
                        view.apply(event)
                    await changed(view)
        except StoreUnavailableError:
            await asyncio.sleep(AGAIN_S)
