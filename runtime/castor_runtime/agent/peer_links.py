"""Links to the agents around this one: see `castor_policy.agents.neighbours`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial

from castor_policy.agents.effects import WatchPeers
from castor_policy.agents.events import AgentEvent, PeerFound, PeerLost
from castor_runtime.transport import PeerClient, PeerLink


class PeerLinks:
    """One link to each life that is to be watched.

    Args:
        client: makes links.
        emit: told of who is lost and found, in the event loop's thread.
    """

    def __init__(self, client: PeerClient, emit: Callable[[AgentEvent], None]) -> None:
        self._client = client
        self._emit = emit
        self._links: dict[str, PeerLink] = {}

    def watch(self, wanted: WatchPeers) -> None:
        """Watch these from now on; links that stand already go on."""
        loop = asyncio.get_running_loop()
        kept = {one.incarnation for one in wanted.peers}
        for name in [name for name in self._links if name not in kept]:
            self._links.pop(name).end()
        for one in wanted.peers:
            if one.incarnation not in self._links:
                tell = partial(self._told, loop, one.incarnation)
                link = self._client.link(one.address, one.incarnation, wanted.within_s, tell)
                self._links[one.incarnation] = link
                link.start()

    def close(self) -> None:
        """Watch nobody any more."""
        for link in self._links.values():
            link.end()
        self._links.clear()

    def _told(self, loop: asyncio.AbstractEventLoop, incarnation: str, reached: bool) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._tell, incarnation, reached)

    def _tell(self, incarnation: str, reached: bool) -> None:
        if incarnation in self._links:
            self._emit(PeerFound(incarnation) if reached else PeerLost(incarnation))
