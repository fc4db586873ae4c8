"""The processes of measure.py: one that holds a part, and one that fetches it.

    python roles.py holder NAME MIB CHUNK_MIB
    python roles.py receiver NAME MIB CHUNK_MIB

Each answers a line of JSON with a line of JSON; its input's end ends it.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from castor_runtime.arena import SHARED_MEMORY, PartLayout, Replica
from castor_runtime.arena.digests import chunk_digests
from castor_runtime.arena.layout import SegmentOwner
from castor_runtime.transport import JobSecret, PeerClient, PeerServer

FINGERPRINT = bytes(range(16))
RUN = "0123456789abcdef"
SECRET = JobSecret(b"the secret of a benchmark, 32 bytes..."[:32])
ITERATION = 7
BARE_STREAMS = 2
_SLICE_BYTES = 1 << 20


@contextmanager
def part(name: str, mib: int, chunk_mib: int) -> Iterator[Replica]:
    """Have a part of one buffer in shared memory, faulted in, and take it away again."""
    owner = SegmentOwner("benchmark", RUN, name, FINGERPRINT)
    layout = PartLayout(0, mib << 20, 4096, chunk_mib << 20, 1)
    with Replica.create(name, owner, layout) as made:
        try:
            made.touch()
            yield made
        finally:
            (SHARED_MEMORY / name).unlink()


def cpu_s() -> float:
    """Return the processor's time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def say(**document: Any) -> None:
    """Answer."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


class Source:
    """What the holder offers."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def open(self, rank: int, iteration: int) -> Any:
        del rank
        return self._replica.snapshot(iteration)


async def hold(name: str, mib: int, chunk_mib: int) -> None:
    """Serve a part by Castor's server, and bare: halves of its bytes to whoever connects."""
    with part(name, mib, chunk_mib) as replica:
        writing = replica.begin(ITERATION, 1, None)
        np.frombuffer(writing.data, np.uint8)[:] = 7
        writing.commit(b"meta")
        with socket.create_server(("127.0.0.1", 0)) as bare:
            threading.Thread(target=_send_bare, args=(bare, mib << 20), daemon=True).start()
            async with PeerServer(
                "127.0.0.1", run=RUN, credentials=SECRET, source=Source(replica), status=dict
            ) as server:
                say(address=server.address, bare=bare.getsockname()[1])
                while await asyncio.to_thread(sys.stdin.readline):
                    say(cpu_s=cpu_s())
        del writing


def _send_bare(listener: socket.socket, size_bytes: int) -> None:
    data = mmap.mmap(-1, size_bytes // BARE_STREAMS)
    data[:] = b"7" * len(data)

    def send(connection: socket.socket) -> None:
        with connection, memoryview(data) as view:
            for start in range(0, len(view), _SLICE_BYTES):
                connection.sendall(view[start : start + _SLICE_BYTES])
            connection.recv(1)

    while True:
        connection, _ = listener.accept()
        threading.Thread(target=send, args=(connection,), daemon=True).start()


def receive(name: str, mib: int, chunk_mib: int) -> None:
    """Fetch as told, into the same memory each time."""
    with part(name, mib, chunk_mib) as replica:
        while line := sys.stdin.readline():
            asked = json.loads(line)
            writing: Any = replica.begin(ITERATION, 1, None)
            ways: dict[str, Callable[[], object]] = {
                "fetch": lambda: _fetch(asked["addresses"], writing),  # noqa: B023
                "bare": lambda: _receive_bare(asked["bare"], writing.data),  # noqa: B023
                "memcpy": lambda: _copy(writing.data),  # noqa: B023
                "digest": lambda: chunk_digests(writing.data, replica.part),  # noqa: B023
            }
            began_s, used_s = time.monotonic(), cpu_s()
            ways[asked["way"]]()
            say(seconds=time.monotonic() - began_s, cpu_s=cpu_s() - used_s)
            writing.abandon()
            del writing, ways


def _fetch(addresses: list[str], writing: Any) -> None:
    asyncio.run(PeerClient(SECRET, RUN).fetch(addresses, 0, ITERATION, FINGERPRINT, writing))


def _receive_bare(port: int, into: memoryview) -> None:
    def one(number: int) -> None:
        size = len(into) // BARE_STREAMS
        with (
            socket.create_connection(("127.0.0.1", port)) as connection,
            into[number * size : (number + 1) * size] as half,
        ):
            done = 0
            while done < size:
                with half[done : done + _SLICE_BYTES] as piece:
                    done += connection.recv_into(piece)
            connection.send(b".")

    with ThreadPoolExecutor(BARE_STREAMS) as pool:
        list(pool.map(one, range(BARE_STREAMS)))


_FROM: list[np.ndarray[Any, np.dtype[np.uint8]]] = []


def _copy(into: memoryview) -> None:
    if not _FROM:  # the first round pays for its pages
        _FROM.append(np.full(len(into), 7, np.uint8))
    np.frombuffer(into, np.uint8)[:] = _FROM[0]


if __name__ == "__main__":
    role, name, *sizes = sys.argv[1:]
    if role == "holder":
        asyncio.run(hold(name, *map(int, sizes)))
    else:
        receive(name, *map(int, sizes))
