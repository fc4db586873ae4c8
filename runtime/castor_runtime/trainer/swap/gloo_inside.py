"""Gloo's connections of one generation, which can be ended while somebody waits for them.

`ProcessGroupGloo` of torch 2.13 takes `abort()` and `shutdown()` and does nothing, and its
destructor waits for what is under way. So its sockets are shut down: gloo fails every operation of
a connection that ends, within a millisecond, also where the peer lives and only stands still.
Which sockets are its own is known by the addresses that ranks tell each other in the store.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import torch
from torch._C._distributed_c10d import ProcessGroup, ProcessGroupGloo, Store

from castor_runtime.trainer.swap.errors import LostRankError
from castor_runtime.trainer.swap.inside import EndedOperations

Address = tuple[str, int]

_OVERSHOOT: Final = 0.1
"""A key is asked for again after this share of the time for which it was waited for, within:"""
_SHORTEST_S: Final = 0.001
_LONGEST_S: Final = 0.05

_CLOSING_S: Final = 5.0
"""So long gloo may take to close sockets that were shut down; it takes milliseconds."""

_CPU: Final = torch.device("cpu")


class GlooInside:
    """A gloo group of one generation; see `Inside`.

    Args:
        store: of that generation, of this group alone.
        rank: of this process in the group.
        size: of the group.
        timeout: of a collective, and of all ranks' coming together.
    """

    def __init__(self, store: Store, rank: int, size: int, timeout: timedelta) -> None:
        self.operations: Any = ProcessGroup(rank, size)  # type: ignore[call-arg]
        self._store = _Rendezvous(store, timeout)
        self._rank = rank
        self._size = size
        self._timeout = timeout
        self._is_connecting = False

    def connect(self) -> None:
        """See `Inside`."""
        self._is_connecting = True
        try:
            gloo = ProcessGroupGloo(self._store, self._rank, self._size, self._timeout)
        except RuntimeError as error:
            raise LostRankError(f"not all ranks came together: {error}") from error
        finally:
            self._is_connecting = False
        self.operations._set_default_backend(ProcessGroup.BackendType.GLOO)
        self.operations._register_backend(_CPU, ProcessGroup.BackendType.GLOO, gloo)

    def close(self) -> None:
        """See `Inside`."""
        self._store.end()
        until = time.monotonic() + _CLOSING_S
        while time.monotonic() < until:
            left = 0
            for connection in _connections(self._store.addresses):
                left += 1
                with connection, suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            # While ranks come together, gloo may open another one after this look.
            if not left and not self._is_connecting:
                return
            time.sleep(0.001)

    def drop(self) -> None:
        """See `Inside`."""
        # Its destructor joins the threads that compute; frames of a traceback keep only `self`.
        self.operations = EndedOperations()


class _Rendezvous(Store):
    """A store through which gloo's ranks meet; waits in it can be ended."""

    def __init__(self, store: Store, timeout: timedelta) -> None:
        super().__init__()
        self._store = store
        self._timeout = timeout
        self._ended = threading.Event()
        self.addresses: set[Address] = set()

    def end(self) -> None:
        self._ended.set()

    def set(self, key: str, value: Any) -> None:  # bytes, when C++ calls
        self.addresses.add(_address(value))
        self._store.set(key, value)

    def get(self, key: str) -> bytes:
        value: bytes = self._store.get(key)
        self.addresses.add(_address(value))
        return value

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        began = time.monotonic()
        patience_s = (timeout or self._timeout).total_seconds()
        while not self._ended.is_set():
            # Stores differ in how long a short wait takes and in what it raises: a file's takes a
            # second, and raises no DistStoreError. All of them can be asked.
            if self._store.check(keys):
                return
            waited_s = time.monotonic() - began
            if waited_s > patience_s:
                raise LostRankError(f"{', '.join(keys)} did not come within {patience_s:g} s")
            self._ended.wait(min(max(waited_s * _OVERSHOOT, _SHORTEST_S), _LONGEST_S))
        raise LostRankError("the generation ended while its ranks came together")


def _address(told: bytes) -> Address:
    """Return where a rank listens, of what gloo tells in the store (torch 2.13).

    The name of its host and the address, each after its length; that begins with a sockaddr.
    """
    (name_bytes,) = struct.unpack_from("=Q", told)
    at = 8 + name_bytes + 8
    (family,) = struct.unpack_from("=H", told, at)
    (port,) = struct.unpack_from("!H", told, at + 2)
    if family == socket.AF_INET:
        return socket.inet_ntop(family, told[at + 4 : at + 8]), port
    if family == socket.AF_INET6:
        return socket.inet_ntop(family, told[at + 8 : at + 24]), port
    raise RuntimeError(f"gloo tells an address of family {family}, which is neither IPv4 nor IPv6")


def _connections(listening: set[Address]) -> Iterator[socket.socket]:
    """Yield this process's connections from or to one of those addresses, each a duplicate."""
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # it was closed meanwhile
            if not str(entry.readlink()).startswith("socket:"):
                continue
            # A duplicate stays the same socket, whoever closes that number and opens it anew.
            connection = socket.socket(fileno=os.dup(int(entry.name)))
            try:
                ends = {connection.getpeername()[:2], connection.getsockname()[:2]}
            except OSError:  # it listens
                connection.close()
                continue
            if ends & listening:
                yield connection
            else:
                connection.close()
