"""What the launcher does beside its main loop, and whether any of it has failed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


class BackgroundTasks:
    """Tasks of one run.

    Attributes:
        fatal: the exception that the last failed one ended with, a sentence; "" while none has.
    """

    def __init__(self) -> None:
        self.fatal = ""
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Begin a task."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fatal = f"{type(error).__name__}: {error}"

    async def cancel(self) -> None:
        """End what goes on yet."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
