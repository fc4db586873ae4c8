"""What runs on the emulated storage host: takes the bytes that are written, sends those read.

The files of persistent checkpoints lie on this machine's disk; what crosses the shaped links to
here is as many bytes as were written or read, so that storage is as slow as its link, and shares
the hosts' links with training (`storage_traffic` is the other side). Nothing is kept.

Protocol: a request of nine bytes, the direction (b"w" or b"r") and a count (8 bytes, big-endian).
After "w" come that many bytes, which nothing answers; "r" is answered by that many.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

from castor_lab.emulated_cluster.layout import STORAGE_PORT, Host
from castor_lab.emulated_cluster.namespaces import enter
from castor_runtime.processes import die_with_parent

REQUEST: Final = struct.Struct("!cQ")
WRITE: Final = b"w"
READ: Final = b"r"
PIECE_BYTES: Final = 256 << 10

_READY: Final = b"ready\n"


class StorageHost:
    """The storage host's server, as a process that dies with the thread that starts it.

    Args:
        host: where it runs.
        log: file for what it says.
    """

    def __init__(self, host: Host, log: Path) -> None:
        self.address = f"{host.address}:{STORAGE_PORT}"
        with log.open("ab") as said:
            self._process = subprocess.Popen(  # noqa: S603 - this very interpreter, our module
                [sys.executable, "-m", __name__, str(os.getpid()), host.namespace, self.address],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
                start_new_session=True,  # a Ctrl-C is the launcher's, which ends it last
            )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != _READY:
            self.close()
            raise RuntimeError(f"the emulated storage host did not start; see {log}")

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def close(self) -> None:
        """Kill it and wait for its end."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def serve(address: str, port: int) -> None:
    """Serve for ever, each connection in a thread of its own."""
    with socket.create_server((address, port), backlog=64) as server:
        sys.stdout.buffer.write(_READY)
        sys.stdout.buffer.flush()
        while True:
            connection, _ = server.accept()
            threading.Thread(target=_serve_one, args=(connection,), daemon=True).start()


def _serve_one(connection: socket.socket) -> None:
    buffer = memoryview(bytearray(PIECE_BYTES))
    # A trainer that is killed breaks its connection off.
    with connection, contextlib.suppress(ConnectionError):
        while True:
            request = connection.recv(REQUEST.size, socket.MSG_WAITALL)
            if len(request) < REQUEST.size:
                return
            direction, left = REQUEST.unpack(request)
            while left > 0:
                piece = buffer[: min(left, PIECE_BYTES)]
                if direction == READ:
                    connection.sendall(piece)
                    left -= len(piece)
                elif count := connection.recv_into(piece):
                    left -= count
                else:
                    return


def main(arguments: list[str]) -> int:
    """Run the server: PARENT NAMESPACE ADDRESS:PORT; it ends with its parent."""
    parent, namespace, address = arguments
    die_with_parent(int(parent))
    enter(namespace)
    host, _, port = address.rpartition(":")
    serve(host, int(port))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
