"""Where a trainer meets the others of its generation, as its agent told it.

`init_process_group` asks the handler of `env://` for a store, whoever calls it: ours, here.
`castor_runtime.agent.rendezvous` chooses the place, and says why it is where it is.
"""

from __future__ import annotations

import importlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Final

VARIABLE: Final = "CASTOR_RENDEZVOUS"
"""Set in a trainer's environment: the place that the agent of machine 0 has chosen."""

FILE: Final = "?file="
"""In a place that is a file's, after an address that nobody listens at."""

PATIENCE: Final = timedelta(minutes=30)
"""torch's own, with the store of a job."""

_BACKLOG = 2048
_SLICE_S = 2.0
"""So long somebody who waits for the first rank to listen goes on before he asks whether to."""


def environment(place: str) -> dict[str, str]:
    """Return what a trainer finds set; scripts may look at torch's own two variables."""
    address, _, port = place.partition(FILE)[0].rpartition(":")
    return {"MASTER_ADDR": address, "MASTER_PORT": port, VARIABLE: place}


def meet(
    place: str,
    rank: int,
    world: int,
    timeout: timedelta,
    gives_up: Callable[[], bool] = lambda: False,
) -> Any:
    """Return the store of a generation's trainers; its first rank holds it.

    Args:
        place: as the agent of machine 0 has chosen it.
        rank: of this trainer.
        world: how many trainers there are.
        timeout: of whatever is asked of the store later.
        gives_up: says that nobody is met there any more.

    Raises:
        torch.distributed.DistNetworkError: the first rank does not listen.
    """
    dist: Any = importlib.import_module("torch.distributed")
    address, _, path = place.partition(FILE)
    if path:
        store = dist.FileStore(path, world)
        store.set_timeout(timeout)
        return store
    host, _, port = address.rpartition(":")
    if rank == 0:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        listener.listen(_BACKLOG)
        return dist.TCPStore(
            host,
            int(port),
            world,
            is_master=True,
            timeout=timeout,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
    until_s = time.monotonic() + timeout.total_seconds()
    while True:
        slice_ = min(timedelta(seconds=_SLICE_S), timeout)
        try:
            store = dist.TCPStore(
                host, int(port), world, is_master=False, timeout=slice_, wait_for_workers=False
            )
        except (dist.DistNetworkError, dist.DistStoreError):
            if gives_up() or time.monotonic() > until_s:
                raise
        else:
            store.set_timeout(timeout)
            return store


def install() -> None:
    """Have this process's `env://` meet where its environment says, if it says so."""
    if VARIABLE in os.environ:
        # There is no public way to replace a handler, only one to add another scheme's.
        handlers = vars(importlib.import_module("torch.distributed.rendezvous"))
        handlers["_rendezvous_handlers"]["env"] = _meet


def _meet(
    _url: str, timeout: timedelta = PATIENCE, **_options: Any
) -> Iterator[tuple[Any, int, int]]:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    yield meet(os.environ[VARIABLE], rank, world, timeout), rank, world
    raise RuntimeError("the trainers of a generation meet once")
