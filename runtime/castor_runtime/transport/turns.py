"""Who may send next: a server's bandwidth shared fairly between the fetches it serves."""

from __future__ import annotations

import threading
from collections import Counter


class SendTurns:
    """At most `limit` chunks are sent at once; the fetch with the fewest on the way goes next.

    Among equals, the one whose last turn is longest ago. A fetch with many connections so gets no
    more than one with a single connection, as long as both have something to send.

    Args:
        limit: of simultaneous sends, 1 or more.

    Raises:
        ValueError: the limit is less than 1.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"the limit of simultaneous sends must be 1 or more, not {limit}")
        self._limit = limit
        self._sending: Counter[str] = Counter()
        self._last_turn: dict[str, int] = {}
        self._waiting: dict[int, str] = {}
        self._tickets = 0
        self._turns = 0
        self._changed = threading.Condition()

    def take(self, fetch: str, timeout_s: float) -> bool:
        """Wait for a turn; False if none came in that time. Each turn must be given back."""
        with self._changed:
            self._tickets += 1
            ticket = self._tickets
            self._waiting[ticket] = fetch
            try:
                taken = self._changed.wait_for(lambda: self._next() == ticket, timeout_s)
                if taken:
                    self._sending[fetch] += 1
                    self._turns += 1
                    self._last_turn[fetch] = self._turns
            finally:
                del self._waiting[ticket]
                # Whoever is next may have waited behind this ticket.
                self._changed.notify_all()
            return taken

    def give_back(self, fetch: str) -> None:
        """End a turn of `fetch`."""
        with self._changed:
            self._sending[fetch] -= 1
            if not self._sending[fetch]:
                del self._sending[fetch]
            if not self._sending and not self._waiting:
                self._last_turn.clear()
            self._changed.notify_all()

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nobody sends and nobody waits to; False if that did not come in that time."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not self._sending and not self._waiting, timeout_s
            )

    def _next(self) -> int | None:
        if self._sending.total() >= self._limit or not self._waiting:
            return None
        return min(self._waiting, key=self._rank)

    def _rank(self, ticket: int) -> tuple[int, int, int]:
        fetch = self._waiting[ticket]
        return self._sending[fetch], self._last_turn.get(fetch, 0), ticket


class Turn:
    """A turn that is given back once, be it early.

    Raises:
        TimeoutError: none came in time.
    """

    def __init__(self, turns: SendTurns, fetch: str, timeout_s: float) -> None:
        self._turns: SendTurns | None = turns
        self._fetch = fetch
        if not turns.take(fetch, timeout_s):
            raise TimeoutError("the server was busy sending to others for too long")

    @property
    def is_held(self) -> bool:
        """Whether it has not ended."""
        return self._turns is not None

    def give_back(self) -> None:
        """End the turn, if it has not ended."""
        if self._turns is not None:
            self._turns.give_back(self._fetch)
            self._turns = None
