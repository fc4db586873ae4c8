"""Room for metadata that grow while training goes on: asked of the agent, which owns the memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from castor_runtime.arena import Replica
from castor_runtime.arena.mapped_part import MappedPart

_POLL_S = 0.002
_AHEAD = 1.25
"""How much larger metadata must be than at the last request to ask again."""


class RoomError(RuntimeError):
    """The agent gave no room for metadata that have grown."""


class MetaRooms:
    """Asks for room in the replicas that one trainer writes, before it is needed.

    Args:
        replicas: its own, and those of the parts that it receives.
        ask: sends the agent the rank of a part and the size of its metadata in bytes.
        timeout_s: how long to wait where there is no room yet.
        gives_up: whether not to wait any more.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        ask: Callable[[int, int], None],
        timeout_s: float,
        gives_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._ask = ask
        self._timeout_s = timeout_s
        self._gives_up = gives_up
        self._asked: dict[str, int] = {}
        for replica in replicas:
            replica.ask_for_room = self._wait

    def note(self, replica: Replica, meta_bytes: int) -> None:
        """Ask for more, without waiting, if metadata of that size take more than half the room."""
        if 2 * meta_bytes > replica.meta_bytes and (
            meta_bytes > _AHEAD * self._asked.get(replica.name, 0)
        ):
            self._asked[replica.name] = meta_bytes
            self._ask(replica.rank, meta_bytes)

    def _wait(self, replica: MappedPart, meta_bytes: int) -> None:
        """Wait for room that is needed now: metadata more than doubled within an iteration."""
        if meta_bytes > self._asked.get(replica.name, 0):
            self._asked[replica.name] = meta_bytes
            self._ask(replica.rank, meta_bytes)
        end_s = time.monotonic() + self._timeout_s
        while meta_bytes > replica.meta_bytes:
            if time.monotonic() >= end_s or self._gives_up():
                raise RoomError(
                    f"rank {replica.rank} has {meta_bytes} bytes of small and user states, there "
                    f"is room for {replica.meta_bytes}, and the agent gave no more within "
                    f"{self._timeout_s:g} s: see its log"
                )
            time.sleep(_POLL_S)
