"""Opens authenticated connections to one peer, for a thread that another one may have to wake."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable

from castor_runtime.transport import channel as channels
from castor_runtime.transport.channel import Channel
from castor_runtime.transport.credentials import Credentials
from castor_runtime.transport.timeouts import Timeouts


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port` or `[host]:port`.

    Raises:
        ValueError: it is neither.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"the address of a peer is host:port, not {address!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def connected(
    address: tuple[str, int],
    timeout_s: float,
    own: str = "",
    register: Callable[[socket.socket], None] = lambda _: None,
) -> socket.socket:
    """Return a connection to a host and port.

    Args:
        address: host and port.
        timeout_s: until it stands, with each address of the host's.
        own: the address of this host that it comes from; "": as the system chooses.
        register: given each socket before it connects, for whoever may have to `interrupt` it.

    Raises:
        OSError: there is none within that time.
    """
    failure: OSError = OSError("the host has no address")
    for family, kind, protocol, _, where in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
        connection = socket.socket(family, kind, protocol)
        try:
            register(connection)
            connection.settimeout(timeout_s)
            if own:
                connection.bind((own, 0))
            connection.connect(where)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            connection.close()
            failure = error
        else:
            return connection
    raise failure


class Dialler:
    """Opens authenticated connections to one peer, which `interrupt` can end at any time.

    Args:
        host: of the peer.
        port: of the peer.
        credentials: what both sides prove.
        run: which run of the job both belong to.
        context: for TLS, if the credentials are certificates.
        timeouts: bounds on waiting.
        own: address of this host that they come from; "": as the system chooses.
    """

    def __init__(
        self,
        host: str,
        port: int,
        credentials: Credentials,
        run: str,
        context: ssl.SSLContext | None,
        timeouts: Timeouts,
        own: str = "",
    ) -> None:
        self._where = (host, port)
        self._credentials = credentials
        self._run = run
        self._context = context
        self._timeouts = timeouts
        self._own = own
        self._connection: socket.socket | None = None
        self._interrupted = False
        self._lock = threading.Lock()

    def open(self, connected_to: Callable[[socket.socket], None] = lambda _: None) -> Channel:
        """Return a new connection; the one before is closed.

        Args:
            connected_to: told of the connection as soon as the peer's host has accepted it.

        Raises:
            PeerRefusedError: one side refuses the other.
            OSError: there is no connection.
        """
        self.close()
        connection = connected(self._where, self._timeouts.connect_s, self._own, self._register)
        try:
            connected_to(connection)
            connection = channels.secured_client(
                connection, self._context, self._where[0], self._timeouts.handshake_s
            )
            self._register(connection)
            return channels.greet_server(
                connection, self._credentials, self._run, self._timeouts.handshake_s
            )
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Close the connection, if there is one."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def interrupt(self) -> None:
        """End what the connection's thread waits for, from another thread, for good."""
        with self._lock:
            self._interrupted = True
        self.cut()

    def cut(self) -> None:
        """End what the connection's thread waits for, from another thread; it may open another."""
        with self._lock:
            if self._connection is not None:
                channels.interrupt(self._connection)

    def _register(self, connection: socket.socket) -> None:
        with self._lock:
            self._connection = connection
            if self._interrupted:
                raise ConnectionAbortedError("no longer wanted")
