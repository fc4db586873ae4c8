"""Pieces over plain TCP: some connections to each holder and from each source, a thread for each.

What a thread does for a piece is one call into the kernel that returns when all of it is sent, or
received: it holds Python's lock for neither, and asks for it again once. A core moves more this way
than through gloo, and several connections fill a link that one core cannot (benchmarks/send).

Each connection carries its stripes in the order of the rounds, the same at both ends, with the
round's number and the size before each: what does not fit is an error, not another replica's bytes.
Whoever connects shows the token that the listener has given out over the trainers' own group.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil
import torch
import torch.distributed as dist

from castor_runtime.trainer.stripes import striped

_HELLO = struct.Struct("!16sII")
"""Token, rank and which of the connections; before all else."""
_HEAD = struct.Struct("!QQ")
"""Round and size; before each stripe."""
_WINDOW_BYTES = 2 << 20
"""The most that may be on its way on a connection: what 100 Gbit/s hold in 160 us, for each of
several connections."""
_UNSENT_BYTES = 256 << 10
"""The most that may wait to be sent. More only leaves the processor's caches before it is read:
with both bounds a core over loopback has a tenth to a fifth less to do."""
_TIMEVAL = struct.Struct("ll")
_ADDRESS_BYTES = 64
_LOOK_S = 0.2
"""So often who waits for a connection asks whether to wait on."""
_HELLO_S = 60.0
"""How long somebody who has connected may take to say who he is."""


class StreamError(RuntimeError):
    """A peer is gone or silent, or sends what was not agreed."""


class _Stripe:
    """A stripe under way, to wait for."""

    def __init__(self, tag: int, data: memoryview) -> None:
        self.tag = tag
        self.data = data
        self._done = threading.Event()
        self._error: BaseException | None = None

    def finish(self, error: BaseException | None = None) -> None:
        self._error = error
        self._done.set()

    def wait(self) -> None:
        self._done.wait()
        if self._error is not None:
            raise StreamError(str(self._error)) from self._error


class _Stream:
    """One direction of one connection, and its thread."""

    def __init__(
        self,
        connection: socket.socket,
        peer: str,
        move: Callable[[socket.socket, _Stripe], None],
        timeout_s: float,
    ) -> None:
        self._connection = connection
        self._peer = peer
        self._move = move
        self._timeout_s = timeout_s
        self._asked: queue.SimpleQueue[_Stripe | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="castor-stream", daemon=True)
        self._thread.start()

    def ask(self, tag: int, data: memoryview) -> _Stripe:
        stripe = _Stripe(tag, data)
        self._asked.put(stripe)
        return stripe

    def end(self) -> None:
        with contextlib.suppress(OSError):  # the peer was first
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._asked.put(None)
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        failed: BaseException | None = None
        while (stripe := self._asked.get()) is not None:
            if failed is None:
                try:
                    self._move(self._connection, stripe)
                except BlockingIOError:
                    failed = StreamError(f"{self._peer}: nothing moved for {self._timeout_s:g} s")
                except OSError as error:
                    failed = StreamError(f"{self._peer}: {error}")
                except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                    failed = error
            stripe.finish(failed)


class TcpStreams:
    """One rank's connections. Every rank makes them at the same point.

    Args:
        control: a group of all ranks, over which addresses and tokens go.
        holders: ranks that this one sends to.
        sources: ranks that it receives from.
        count: connections to each of them, the same on all ranks.
        address: of this machine, for the others.
        timeout_s: how long a peer may be silent while something is under way.
        gives_up: whether not to wait any more for those that have yet to connect.

    Raises:
        StreamError: a peer cannot be reached, or does not come.
    """

    def __init__(
        self,
        control: dist.ProcessGroup,
        holders: Sequence[int],
        sources: Sequence[int],
        count: int,
        *,
        address: str,
        timeout_s: float,
        gives_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._count = count
        self._gives_up = gives_up
        self._timeout_s = timeout_s
        token = secrets.token_bytes(16)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        backlog = len(sources) * count + 16
        with socket.create_server((address, 0), family=family, backlog=backlog) as listener:
            port = int(listener.getsockname()[1])
            where = _told_to_all(control, address, port, token)
            own = control.rank()
            try:
                # The kernel takes connections in before they are accepted: no circle of waits.
                outgoing = {rank: self._connect(where[rank], own) for rank in holders}
                incoming = self._accept(listener, token, sources)
            except OSError as error:
                raise StreamError(f"rank {own} has no way for checkpoints: {error}") from error
        self._outgoing = {
            rank: [_Stream(one, f"to rank {rank}", _send, timeout_s) for one in connections]
            for rank, connections in outgoing.items()
        }
        self._incoming = {
            rank: [_Stream(one, f"from rank {rank}", _receive, timeout_s) for one in connections]
            for rank, connections in incoming.items()
        }

    def post(
        self,
        tag: int,
        outgoing: Sequence[tuple[int, torch.Tensor]],
        incoming: Sequence[tuple[int, torch.Tensor]],
    ) -> list[Any]:
        """Start sends and receives with those ranks; return what to wait for.

        Args:
            tag: of the round, the same at both ends, which post rounds in the same order.
            outgoing: rank and what is sent: CPU memory, flat, uint8.
            incoming: rank and where to, of the size that is sent.
        """
        asked: list[_Stripe] = []
        for streams, pieces in ((self._incoming, incoming), (self._outgoing, outgoing)):
            for rank, piece in pieces:
                parts = striped(piece, self._count)
                asked += [
                    stream.ask(tag, part.numpy().data)
                    for stream, part in zip(streams[rank], parts, strict=False)
                ]
        return asked

    def end(self) -> None:
        """End what is under way, and what is asked for later, with an error; from any thread."""
        for stream in self._streams():
            stream.end()

    def close(self) -> None:
        """End the threads and the connections; nothing may be under way."""
        for stream in self._streams():
            stream.close()

    def _streams(self) -> Iterator[_Stream]:
        for streams in (*self._outgoing.values(), *self._incoming.values()):
            yield from streams

    def _connect(self, where: tuple[str, int, bytes], own: int) -> list[socket.socket]:
        address, port, token = where
        made: list[socket.socket] = []
        for index in range(self._count):
            one = socket.create_connection((address, port), timeout=self._timeout_s)
            one.sendall(_HELLO.pack(token, own, index))
            made.append(self._ready(one))
        return made

    def _accept(
        self, listener: socket.socket, token: bytes, sources: Sequence[int]
    ) -> dict[int, list[socket.socket]]:
        wanted = {(rank, index) for rank in sources for index in range(self._count)}
        found: dict[tuple[int, int], socket.socket] = {}
        listener.settimeout(min(_LOOK_S, self._timeout_s))
        until_s = time.monotonic() + self._timeout_s
        while wanted - found.keys():
            try:
                one, _ = listener.accept()
            except TimeoutError:
                if self._gives_up() or time.monotonic() > until_s:
                    raise
                continue
            one.settimeout(min(_HELLO_S, self._timeout_s))
            try:
                said, rank, index = _HELLO.unpack(one.recv(_HELLO.size, socket.MSG_WAITALL))
            except (OSError, struct.error):
                one.close()  # a stranger, or one that is gone again
                continue
            if secrets.compare_digest(said, token) and (rank, index) in wanted - found.keys():
                found[rank, index] = self._ready(one)
            else:
                one.close()
        return {rank: [found[rank, index] for index in range(self._count)] for rank in sources}

    def _ready(self, one: socket.socket) -> socket.socket:
        """Have calls wait in the kernel, so that each moves a whole stripe; but not for ever."""
        one.settimeout(None)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, _WINDOW_BYTES)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        limit = _TIMEVAL.pack(int(self._timeout_s), int(self._timeout_s % 1 * 1e6))
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        return one


def own_address() -> str:
    """Return the address at which other trainers reach this one.

    It is that of the interface that gloo is told (`GLOO_SOCKET_IFNAME`: the agent sets it), else
    the one from which this machine reaches the trainers' meeting place.
    """
    wanted = os.environ.get("GLOO_SOCKET_IFNAME", "").partition(",")[0]
    for one in psutil.net_if_addrs().get(wanted, []):
        if one.family == socket.AF_INET:
            return str(one.address)
    place = (os.environ.get("MASTER_ADDR", "127.0.0.1"), 1)
    family, _, _, _, found = socket.getaddrinfo(*place, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(found)  # sends nothing
        return str(probe.getsockname()[0])


def _send(connection: socket.socket, stripe: _Stripe) -> None:
    connection.sendall(_HEAD.pack(stripe.tag, len(stripe.data)))
    connection.sendall(stripe.data)


def _receive(connection: socket.socket, stripe: _Stripe) -> None:
    head = bytearray(_HEAD.size)
    _fill(connection, memoryview(head))
    found, wanted = _HEAD.unpack(head), (stripe.tag, len(stripe.data))
    if found != wanted:
        raise StreamError(f"round and bytes {found} came, where {wanted} were to come")
    _fill(connection, stripe.data)


def _fill(connection: socket.socket, data: memoryview) -> None:
    while data:
        received = connection.recv_into(data, len(data), socket.MSG_WAITALL)
        if received == 0:
            raise ConnectionError("the connection was closed")
        data = data[received:]


def _told_to_all(
    control: dist.ProcessGroup, address: str, port: int, token: bytes
) -> list[tuple[str, int, bytes]]:
    """Return address, port and token of every rank, by rank."""
    mine = address.encode().ljust(_ADDRESS_BYTES, b"\0") + struct.pack("!I", port) + token
    told = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
    every = [torch.empty_like(told) for _ in range(control.size())]
    dist.all_gather(every, told, control)
    found: list[tuple[str, int, bytes]] = []
    for one in every:
        raw = one.numpy().tobytes()
        (at,) = struct.unpack("!I", raw[_ADDRESS_BYTES : _ADDRESS_BYTES + 4])
        found.append((raw[:_ADDRESS_BYTES].rstrip(b"\0").decode(), at, raw[_ADDRESS_BYTES + 4 :]))
    return found
