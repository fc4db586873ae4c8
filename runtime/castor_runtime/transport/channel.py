"""One authenticated connection between two agents, for one thread at a time.

Sockets block here, in threads of the transport's own, because receiving into place, digesting and
sending all release the interpreter's lock: the agent's event loop stays free, and several streams
use several cores. Every wait has a deadline.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

import xxhash

from castor_runtime.transport.credentials import Credentials
from castor_runtime.transport.errors import BrokenFrameError, PeerRefusedError
from castor_runtime.transport.peer_certificates import reason, stranger
from castor_runtime.transport.wire import (
    CONTROL_BYTES,
    HEADER_BYTES,
    MAGIC,
    NONCE_BYTES,
    PROOF_BYTES,
    REFUSAL,
    REFUSAL_BYTES,
    RUN_BYTES,
    SEAL_BYTES,
    Challenge,
    Frame,
    Kind,
    Seal,
)

# What one system call moves. A slice that fits the second-level cache is still there when it is
# digested; one TLS write must also be repeatable as it was.
_SLICE_BYTES = 1 << 20
# A send that gets no byte away for so long waits for its receiver, not for the link.
_STALL_S = 0.2
# How much of a refused peer's data is read so that it sees the refusal and not a reset.
_DRAINED_BYTES = 1 << 16


class Channel:
    """Frames over a connected socket.

    All methods raise OSError (with TimeoutError, ConnectionError, ssl.SSLError) when the
    connection is lost or a deadline passes; the channel is then of no more use.

    Args:
        connection: the socket, authenticated.
        outgoing: seals what is sent.
        incoming: checks what arrives.
    """

    def __init__(self, connection: socket.socket, outgoing: Seal, incoming: Seal) -> None:
        self._connection = connection
        self._outgoing = outgoing
        self._incoming = incoming

    def send(
        self,
        kind: Kind,
        body: bytes = b"",
        *,
        index: int = 0,
        timeout_s: float,
        on_stall: Callable[[], None] | None = None,
    ) -> None:
        """Send a frame with a sealed body; any kind but CHUNK. For `on_stall` see `send_chunk`."""
        frame = Frame(kind, index, len(body))
        message = self._outgoing.pack(frame) + body + self._outgoing.of_body(body)
        send_all(self._connection, memoryview(message), _deadline(timeout_s), on_stall)

    def outlives(self, span_s: float) -> bool:
        """Wait; return whether the connection still stands then, as far as the kernel knows.

        What the other side has sent is neither read nor looked at.

        Raises:
            OSError: why it ended, where that is known.
        """
        poll = select.poll()
        poll.register(self._connection, select.POLLRDHUP)  # errors are told of all the same
        if not poll.poll(span_s * 1000):
            return True
        number = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, os.strerror(number))
        return False

    def send_json(self, kind: Kind, document: dict[str, Any], *, timeout_s: float) -> None:
        """Send a frame whose body is a JSON object.

        Raises:
            ValueError: it is larger than a peer would read.
        """
        body = json.dumps(document).encode()
        if len(body) > CONTROL_BYTES:
            raise ValueError(f"{kind.name} of {len(body)} bytes; {CONTROL_BYTES} at most")
        self.send(kind, body, timeout_s=timeout_s)

    def send_chunk(
        self,
        index: int,
        data: memoryview,
        digest: int,
        *,
        timeout_s: float,
        on_stall: Callable[[], None],
    ) -> None:
        """Send a chunk; `on_stall` is called when the receiver takes nothing for a while."""
        header = self._outgoing.pack(Frame(Kind.CHUNK, index, len(data), digest))
        deadline_s = _deadline(timeout_s)
        send_all(self._connection, memoryview(header), deadline_s, on_stall)
        send_all(self._connection, data, deadline_s, on_stall)

    def receive(self, *, timeout_s: float) -> Frame:
        """Return the next frame's header; its body must be received next."""
        header = receive_exactly(self._connection, HEADER_BYTES, _deadline(timeout_s))
        return self._incoming.unpack(bytes(header))

    def receive_body(
        self, frame: Frame, *, limit_bytes: int = CONTROL_BYTES, timeout_s: float
    ) -> bytes:
        """Return the body of any frame but a CHUNK.

        Raises:
            BrokenFrameError: it is larger than `limit_bytes`, of which nothing is read, or does
                not fit its seal.
        """
        if frame.length_bytes > limit_bytes:
            raise BrokenFrameError(
                f"a {frame.kind.name} of {frame.length_bytes} bytes, {limit_bytes} at most"
            )
        size_bytes = frame.length_bytes + SEAL_BYTES
        message = receive_exactly(self._connection, size_bytes, _deadline(timeout_s))
        body = bytes(message[: frame.length_bytes])
        self._incoming.check_body(body, message[frame.length_bytes :])
        return body

    def receive_json(self, frame: Frame, *, timeout_s: float) -> dict[str, Any]:
        """Return the JSON object that is the frame's body.

        Raises:
            BrokenFrameError: it is none.
        """
        body = self.receive_body(frame, timeout_s=timeout_s)
        try:
            document = json.loads(body)
        except ValueError as error:
            raise BrokenFrameError(f"a {frame.kind.name} that is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise BrokenFrameError(f"a {frame.kind.name} that is no JSON object")
        return document

    def receive_data(self, into: memoryview, *, timeout_s: float) -> int:
        """Receive the body of a CHUNK into place, and return the digest of what arrived.

        Its length has been compared before.
        """
        # Each slice as it comes: by the end of a chunk its beginning has left the caches.
        digest = xxhash.xxh3_64()
        receive_into(self._connection, into, _deadline(timeout_s), digest.update)
        return digest.intdigest()


def secured_client(
    connection: socket.socket, context: ssl.SSLContext | None, host: str, timeout_s: float
) -> socket.socket:
    """Return the connection under TLS if there is a context, else as it is.

    The other side's certificate must name `host`. The socket given is then detached. The caller
    registers the one returned before the handshake.
    """
    if context is None:
        return connection
    connection.settimeout(timeout_s)
    return context.wrap_socket(connection, server_hostname=host, do_handshake_on_connect=False)


def secured_server(
    connection: socket.socket, context: ssl.SSLContext | None, timeout_s: float
) -> socket.socket:
    """Return the accepted connection under TLS if there is a context, else as it is."""
    if context is None:
        return connection
    connection.settimeout(timeout_s)
    return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)


def greet_server(
    connection: socket.socket, credentials: Credentials, run: str, timeout_s: float
) -> Channel:
    """Do the client's part of the handshake.

    Args:
        connection: to the server, under TLS if the credentials are certificates.
        credentials: what both sides prove.
        run: which run of the job this side belongs to; see `JobSpec.run`.
        timeout_s: bound on all of it.

    Raises:
        PeerRefusedError: the other side is no agent of this job or run, or does not take us for
            one.
        OSError: the connection is lost or takes too long.
    """
    deadline_s = _deadline(timeout_s)
    try:
        _handshake_tls(connection, deadline_s)
        nonce, own_run = secrets.token_bytes(NONCE_BYTES), bytes.fromhex(run)
        send_all(connection, memoryview(MAGIC + nonce + own_run), deadline_s)
        magic = receive_exactly(connection, len(MAGIC), deadline_s)
        if bytes(magic) == REFUSAL:
            words = receive_exactly(connection, REFUSAL_BYTES, deadline_s)
            raise PeerRefusedError(words.decode("utf-8", errors="replace").strip("\0"))
        if bytes(magic) != MAGIC:
            raise PeerRefusedError(
                "it does not speak this version of Castor's peer protocol, "
                "or only under TLS; give all agents the same credentials and version"
            )
        answer = bytes(
            receive_exactly(connection, NONCE_BYTES + RUN_BYTES + PROOF_BYTES, deadline_s)
        )
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        raise
    except ssl.SSLError as error:
        where = str(getattr(connection, "server_hostname", ""))
        raise PeerRefusedError(f"TLS: {reason(error, where)}") from error
    their_nonce, their_run = answer[:NONCE_BYTES], answer[NONCE_BYTES:-PROOF_BYTES]
    challenge = Challenge(credentials.handshake_key, nonce, their_nonce, own_run, their_run)
    if not secrets.compare_digest(answer[-PROOF_BYTES:], challenge.server_proof()):
        raise PeerRefusedError("it does not know this job's secret")
    # Proved first, so that the other side, too, knows who came, and says why it refuses.
    send_all(connection, memoryview(challenge.client_proof()), deadline_s)
    _compare_runs(their_run, own_run)
    return Channel(connection, challenge.client_seal(), challenge.server_seal())


def greet_client(
    connection: socket.socket, credentials: Credentials, run: str, timeout_s: float
) -> Channel:
    """Do the server's part of the handshake; for the arguments see `greet_server`.

    Raises:
        PeerRefusedError: the other side is no agent of this job or run.
        OSError: the connection is lost or takes too long.
    """
    deadline_s = _deadline(timeout_s)
    try:
        _handshake_tls(connection, deadline_s)
    except ssl.SSLError as error:
        raise PeerRefusedError(f"TLS: {reason(error, 'this host')}") from error
    if why := stranger(connection):
        told = f"it refuses this host: {why.replace('which it comes from', 'from where it came')}"
        message = REFUSAL + told.encode()[:REFUSAL_BYTES].ljust(REFUSAL_BYTES, b"\0")
        send_all(connection, memoryview(message), deadline_s)
        raise PeerRefusedError(why)
    hello = receive_exactly(connection, len(MAGIC), deadline_s)
    if bytes(hello) != MAGIC:
        raise PeerRefusedError("it does not speak this version of Castor's peer protocol")
    said = bytes(receive_exactly(connection, NONCE_BYTES + RUN_BYTES, deadline_s))
    their_run, own_run = said[NONCE_BYTES:], bytes.fromhex(run)
    nonce = secrets.token_bytes(NONCE_BYTES)
    challenge = Challenge(credentials.handshake_key, said[:NONCE_BYTES], nonce, their_run, own_run)
    answer = MAGIC + nonce + own_run + challenge.server_proof()
    send_all(connection, memoryview(answer), deadline_s)
    proof = receive_exactly(connection, PROOF_BYTES, deadline_s)
    if not secrets.compare_digest(bytes(proof), challenge.client_proof()):
        raise PeerRefusedError("it does not know this job's secret")
    _compare_runs(their_run, own_run)
    return Channel(connection, challenge.server_seal(), challenge.client_seal())


def _compare_runs(theirs: bytes, own: bytes) -> None:
    if theirs != own:
        raise PeerRefusedError(
            f"it belongs to run {theirs.hex()} of this job, this agent to run {own.hex()}: two "
            "runs of one name; end one of them, or give it another name"
        )


def _handshake_tls(connection: socket.socket, deadline_s: float) -> None:
    if isinstance(connection, ssl.SSLSocket):
        connection.settimeout(_remaining(deadline_s))
        connection.do_handshake()


def end_when_unacknowledged(connection: socket.socket, within_s: float) -> None:
    """Have the kernel end the connection once what was sent is not acknowledged for so long."""
    option = socket.TCP_USER_TIMEOUT
    connection.setsockopt(socket.IPPROTO_TCP, option, max(1, round(within_s * 1000)))


def interrupt(connection: socket.socket) -> None:
    """Wake whichever thread waits on the connection, with an error; safe from another thread."""
    # Not SSLSocket.shutdown: that drops the encryption under the thread that still reads.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def part_with(connection: socket.socket, timeout_s: float) -> None:
    """Close after a refusal so that the other side can read why: a reset would overtake it."""
    deadline_s = _deadline(timeout_s)
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_WR)
        left_bytes = _DRAINED_BYTES
        while left_bytes > 0:
            connection.settimeout(_remaining(deadline_s))
            received = socket.socket.recv(connection, left_bytes)
            if not received:
                break
            left_bytes -= len(received)
    connection.close()


def send_all(
    connection: socket.socket,
    data: memoryview,
    deadline_s: float,
    on_stall: Callable[[], None] | None = None,
) -> None:
    """Send all of `data` before the deadline (by the monotonic clock).

    Raises:
        OSError: the connection is lost or the deadline has passed.
    """
    sent = 0
    while sent < len(data):
        wait_s = _remaining(deadline_s)
        connection.settimeout(wait_s if on_stall is None else min(wait_s, _STALL_S))
        with data[sent : sent + _SLICE_BYTES] as piece:
            try:
                sent += connection.send(piece)
            except TimeoutError:
                # The loop ends by the deadline; TLS asks that the same piece be sent again.
                if on_stall is not None:
                    on_stall()


def receive_into(
    connection: socket.socket,
    into: memoryview,
    deadline_s: float,
    arrived: Callable[[memoryview], None] = lambda _: None,
) -> None:
    """Fill `into` before the deadline (by the monotonic clock); `arrived` sees each piece of it.

    Raises:
        OSError: the connection is lost or the deadline has passed.
    """
    received = 0
    while received < len(into):
        connection.settimeout(_remaining(deadline_s))
        with into[received : received + _SLICE_BYTES] as piece:
            count = connection.recv_into(piece)
            if not count:
                raise ConnectionResetError("the connection was closed by the peer")
            with piece[:count] as came:
                arrived(came)
        received += count


def receive_exactly(connection: socket.socket, size_bytes: int, deadline_s: float) -> bytearray:
    """Return the next bytes; the caller has bounded their number.

    Raises:
        OSError: the connection is lost or the deadline has passed.
    """
    message = bytearray(size_bytes)
    with memoryview(message) as into:
        receive_into(connection, into, deadline_s)
    return message


def _deadline(timeout_s: float) -> float:
    return time.monotonic() + timeout_s


def _remaining(deadline_s: float) -> float:
    remaining_s = deadline_s - time.monotonic()
    if remaining_s <= 0:
        raise TimeoutError("the peer was silent for too long")
    return remaining_s
