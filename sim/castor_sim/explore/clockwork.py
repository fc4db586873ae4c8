"""Simulated time: callbacks in the order of their times, of equals the first one made first."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Clockwork:
    """A queue of callbacks; nothing else of a simulation's time is needed here.

    Attributes:
        now_s: simulated time.
    """

    __slots__ = ("_count", "_queue", "now_s")

    def __init__(self) -> None:
        self.now_s = 0.0
        self._count = 0
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []

    def after(self, delay_s: float, what: Callable[..., None], *arguments: Any) -> None:
        """Call back after a time."""
        self._count += 1
        heapq.heappush(self._queue, (self.now_s + delay_s, self._count, what, arguments))

    def step(self) -> None:
        """Go to the next callback and make it.

        Raises:
            IndexError: nothing is left to happen.
        """
        self.now_s, _, what, arguments = heapq.heappop(self._queue)
        what(*arguments)
