"""Who may hold a connection to a server: strangers are counted apart from proven peers.

Whoever connects is a stranger until it has proved that it knows the job's secret. Strangers never
take a proven peer's place, and they never keep another one out: where there are too many, one of
them is given up, of the address that has the most, the one that has had the longest time. Each has
`GRACE_S` for itself, though, in which a peer proves itself: until one has had that, those who come
wait to be accepted.
"""

from __future__ import annotations

import socket
import threading
from collections import Counter
from dataclasses import dataclass

GRACE_S = 0.2
"""A stranger is not given up for another one sooner; a handshake takes milliseconds."""


@dataclass(slots=True)
class _Guest:
    connection: socket.socket
    address: str
    since_s: float
    proven: bool = False


class Admission:
    """The connections of one server, by the thread that serves each; safe from any thread.

    Args:
        peers: most connections that have proved themselves.
        strangers: most that have not yet.
    """

    def __init__(self, peers: int, strangers: int) -> None:
        self._most_peers = peers
        self._most_strangers = strangers
        self._guests: dict[threading.Thread, _Guest] = {}  # in the order in which they came
        self._lock = threading.Lock()

    def wait_s(self, now_s: float) -> float:
        """Return how long to wait before another stranger may be taken in; 0: not at all."""
        with self._lock:
            since_s = [guest.since_s for _, guest in self._strangers()]
        if len(since_s) < self._most_strangers:
            return 0.0
        return max(0.0, min(since_s) + GRACE_S - now_s)

    def enter(
        self, thread: threading.Thread, connection: socket.socket, address: str, now_s: float
    ) -> socket.socket | None:
        """Take a stranger in; return the connection to give up for it, if there are too many."""
        with self._lock:
            strangers = self._strangers()
            self._guests[thread] = _Guest(connection, address, now_s)
            if len(strangers) < self._most_strangers:
                return None
            had_time = [(t, g) for t, g in strangers if now_s - g.since_s >= GRACE_S]
            count = Counter(guest.address for _, guest in strangers)
            # The one to go is the first that has the highest rank: they are in order of time.
            oldest, guest = max(had_time or strangers, key=lambda item: count[item[1].address])
            del self._guests[oldest]
            return guest.connection

    def _strangers(self) -> list[tuple[threading.Thread, _Guest]]:
        return [(thread, guest) for thread, guest in self._guests.items() if not guest.proven]

    def replace(self, thread: threading.Thread, connection: socket.socket) -> bool:
        """Take note of the socket that wraps the thread's first one; False if it was given up."""
        with self._lock:
            guest = self._guests.get(thread)
            if guest is not None:
                guest.connection = connection
            return guest is not None

    def prove(self, thread: threading.Thread) -> bool:
        """Count the thread's connection among the proven; False if they are too many already."""
        with self._lock:
            guest = self._guests.get(thread)
            if guest is None:
                return False
            if sum(g.proven for g in self._guests.values()) >= self._most_peers:
                return False
            guest.proven = True
            return True

    def leave(self, thread: threading.Thread) -> None:
        """Forget the thread's connection; one that was given up is no error."""
        with self._lock:
            self._guests.pop(thread, None)

    def connections(self) -> dict[threading.Thread, socket.socket]:
        """Return all of them, by thread."""
        with self._lock:
            return {thread: guest.connection for thread, guest in self._guests.items()}
