"""What is written to and read from persistent storage, sent over the emulated storage host's link.

On an emulated cluster the environment of every process on a host says that `StorageLink` paces its
storage traffic, and where the storage host is.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from threading import Lock
from typing import Final

from castor_lab.emulated_cluster.storage_host import (
    PIECE_BYTES,
    READ,
    REQUEST,
    WRITE,
)
from castor_runtime import pacing

_STORAGE: Final = "CASTOR_STORAGE"

_UNDER_WAY_BYTES: Final = 32 << 10
"""Asked of the kernel, which doubles it."""

_TIMEOUT_S: Final = 120.0
"""For one piece to pass; a storage host that was cut off is an error after that."""


def storage_environment(address: str) -> Mapping[str, str]:
    """Return what the processes on a host find set; `address` is the storage host's HOST:PORT."""
    return {pacing.VARIABLE: f"{__name__}:{StorageLink.__name__}", _STORAGE: address}


class StorageLink(pacing.Pacer):
    """Sends as many bytes as pass through it over the link of this host's storage host.

    Args:
        reading: bytes come from storage; else they go there.
        bytes_per_s: a limit to hold besides; None for none.
    """

    def __init__(self, *, reading: bool, bytes_per_s: float | None) -> None:
        super().__init__(bytes_per_s)
        self._address = os.environ[_STORAGE]
        self._reading = reading
        self._turn = Lock()
        self._connection: socket.socket | None = None
        self._piece = memoryview(bytearray(PIECE_BYTES))

    def _connected(self) -> socket.socket:
        if self._connection is None:
            connection = socket.socket()
            # A file is written in many small pieces: they are sent without waiting for an answer,
            # and what may be under way is little beside a checkpoint.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNDER_WAY_BYTES)
            connection.settimeout(_TIMEOUT_S)
            host, _, port = self._address.rpartition(":")
            connection.connect((host, int(port)))
            self._connection = connection
        return self._connection

    def pace(self, size_bytes: int) -> None:
        """Wait until `size_bytes` more have crossed the link.

        Raises:
            OSError: the storage host cannot be reached.
        """
        super().pace(size_bytes)
        with self._turn:
            self._transfer(self._connected(), size_bytes)

    def _transfer(self, connection: socket.socket, left: int) -> None:
        connection.sendall(REQUEST.pack(READ if self._reading else WRITE, left))
        while left > 0:
            piece = self._piece[: min(left, len(self._piece))]
            count = connection.recv_into(piece) if self._reading else connection.send(piece)
            if count == 0:
                raise ConnectionError(f"the emulated storage host {self._address} broke off")
            left -= count
