"""A peer server in a thread of its own, for whoever asks it from this one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from castor_runtime.transport import PeerServer

_STARTS_S = 5.0


@contextmanager
def in_a_thread(make: Callable[[], PeerServer]) -> Iterator[PeerServer]:
    """Yield a server that serves until the block ends.

    Args:
        make: makes it, in its thread.
    """
    made: list[PeerServer] = []
    started, ended = threading.Event(), threading.Event()

    async def serve() -> None:
        async with make() as server:
            made.append(server)
            started.set()
            await asyncio.get_running_loop().run_in_executor(None, ended.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(_STARTS_S), "the server did not start"
    try:
        yield made[0]
    finally:
        ended.set()
        thread.join()
