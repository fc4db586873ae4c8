"""What goes on beside whoever began it, and whether any of it has failed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


class BackgroundTasks:
    """Tasks that nobody waits for.

    Args:
        failed: told of each that ends by an error, in a sentence.

    Attributes:
        fatal: the last such sentence; "" while none has failed.
    """

    def __init__(self, failed: Callable[[str], object] = lambda _: None) -> None:
        self.fatal = ""
        self._failed = failed
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, ResultT]) -> asyncio.Task[ResultT]:
        """Begin a task."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fatal = f"{type(error).__name__}: {error}"
            self._failed(self.fatal)

    def cancel(self) -> None:
        """Have all end that go on yet."""
        for task in list(self._tasks):
            task.cancel()

    async def wait(self) -> None:
        """Return when all have ended."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def end(self) -> None:
        """End what goes on yet."""
        self.cancel()
        await self.wait()
