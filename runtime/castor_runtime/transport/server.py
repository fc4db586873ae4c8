"""Offers the parts that this agent holds to its peers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from castor_policy.agents.job_spec import check_run
from castor_runtime.ports import ANY_PORT, Ports
from castor_runtime.transport import channel as channels
from castor_runtime.transport.admission import Admission
from castor_runtime.transport.channel import Channel
from castor_runtime.transport.credentials import Credentials
from castor_runtime.transport.errors import BrokenFrameError, PartMissingError, PeerRefusedError
from castor_runtime.transport.parts import PartSource, ReadablePart, chunk_count, chunk_size
from castor_runtime.transport.priority import go_first
from castor_runtime.transport.telling import Telling, Told
from castor_runtime.transport.timeouts import Timeouts
from castor_runtime.transport.turns import SendTurns, Turn
from castor_runtime.transport.wire import Frame, Kind, identity, unpack_count

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_BACKLOG = 1024
# How long a server that is closed waits for its threads, which have been woken.
_CLOSE_S = 5.0
_ACCEPT_AGAIN_S = 0.1
# A send takes a core: of a large machine's a quarter, for its trainers start meanwhile.
_SENDS = max(4, min(32, (os.cpu_count() or 1) // 4))


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What a server spends on its peers at most.

    Attributes:
        connections: of peers that have proved themselves, open at once; more are closed.
        strangers: of those that have not yet; for one more, another is closed (`Admission`).
        sends: chunks on their way at once, shared fairly between fetches.

    Raises:
        ValueError: one is less than 1.
    """

    connections: int = 256
    strangers: int = 512
    sends: int = _SENDS

    def __post_init__(self) -> None:
        if min(self.connections, self.strangers, self.sends) < 1:
            raise ValueError(f"connections, strangers and sends must be 1 or more, not {self}")


class PeerServer:
    """Serves parts and status to peers that authenticate; bound to one address only.

    Use it as an async context manager, or call `start` and `close`.

    Args:
        host: the address to bind, never empty.
        ports: of which it takes the first free one.
        credentials: what peers must prove.
        run: which run of the job they must be of; see `JobSpec.run`.
        source: where parts are found; asked in the event loop's thread.
        status: what answers a ping, a JSON object; called in the event loop's thread.
        told: what peers may read of the agent: its logs, its account, its host's clock.
        timeouts: bounds on waiting for a peer.
        limits: bounds on what peers cost.

    Raises:
        ValueError: the host is empty, which would bind every address, or the run is none.
    """

    def __init__(
        self,
        host: str,
        ports: Ports = ANY_PORT,
        *,
        credentials: Credentials,
        run: str,
        source: PartSource,
        status: Callable[[], dict[str, Any]],
        told: Told | None = None,
        timeouts: Timeouts | None = None,
        limits: ServerLimits | None = None,
    ) -> None:
        if not host:
            raise ValueError("name the address to bind; an empty host would bind every one")
        check_run(run)
        self._host = host
        self._ports = ports
        self._credentials = credentials
        self._run = run
        self._context = credentials.server_context()
        self._source = source
        self._status = status
        self._timeouts = timeouts or Timeouts()
        self._limits = limits or ServerLimits()
        self._turns = SendTurns(self._limits.sends)
        self.telling = Telling(told or Told(), self._turns, self._timeouts)
        self._admission = Admission(self._limits.connections, self._limits.strangers)
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    @property
    def address(self) -> str:
        """Where it listens, `host:port`, once started.

        Raises:
            RuntimeError: it is not started, or closed.
        """
        if self._listener is None:
            raise RuntimeError("the peer server is not started")
        host, port = self._listener.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def start(self) -> str:
        """Bind and serve; return the address.

        Raises:
            OSError: the address cannot be bound.
        """
        loop = asyncio.get_running_loop()
        # In a thread: a name server may have to be asked for the host.
        listener = await loop.run_in_executor(None, self._ports.bind, self._host)
        try:
            listener.listen(_BACKLOG)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
        self._listener = listener
        self._loop = loop
        self._accepting = asyncio.create_task(self._accept(loop, listener), name="castor-accept")
        return self.address

    async def close(self) -> None:
        """Stop serving: connections are cut; views of parts are given up when it returns."""
        self._closed = True
        if self._accepting is not None:
            self._accepting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._accepting
            self._accepting = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        threads = self._admission.connections()
        for connection in threads.values():
            channels.interrupt(connection)
        await asyncio.get_running_loop().run_in_executor(None, _join, tuple(threads))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _accept(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
        while True:
            while wait_s := self._admission.wait_s(time.monotonic()):
                await asyncio.sleep(wait_s)
            try:
                connection, where = await loop.sock_accept(listener)
            except OSError as error:
                # Out of descriptors, for one: those who are connected go on.
                _log.warning("cannot accept a peer: %s", error)
                await asyncio.sleep(_ACCEPT_AGAIN_S)
                continue
            thread = threading.Thread(
                target=self._serve, args=(connection, where), name="castor-peer", daemon=True
            )
            given_up = self._admission.enter(thread, connection, str(where[0]), time.monotonic())
            if given_up is not None:
                _log.warning(
                    "too many unauthenticated connections: a silent one is closed for %s", where
                )
                channels.interrupt(given_up)  # its thread closes it
            thread.start()

    def _serve(self, connection: socket.socket, where: object) -> None:
        handshake_s = self._timeouts.handshake_s
        thread = threading.current_thread()
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = channels.secured_server(connection, self._context, handshake_s)
            if not self._admission.replace(thread, connection) or self._closed:
                return
            channel = channels.greet_client(connection, self._credentials, self._run, handshake_s)
            if not self._admission.prove(thread):
                _log.warning("too many connections: %s is turned away", where)
                return
            _Session(self, channel).run()
        except PeerRefusedError as error:
            _log.warning("peer %s is refused: %s", where, error)
            channels.part_with(connection, handshake_s)
        except BrokenFrameError as error:
            _log.warning("connection from %s given up: %s", where, error)
        except OSError as error:
            _log.debug("connection from %s ended: %s", where, error)
        finally:
            connection.close()
            self._admission.leave(thread)

    def in_loop(self, call: Callable[[], _T]) -> _T:
        """Return what `call` returns in the event loop's thread, where the agent's state lives.

        Raises:
            TimeoutError: the loop does not get to it.
            ConnectionError: the server is being closed.
            Exception: whatever `call` raises.
        """

        async def called() -> _T:
            return call()

        coroutine = called()
        try:
            assert self._loop is not None
            answer = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError as error:
            coroutine.close()
            raise ConnectionAbortedError("the event loop has ended") from error
        try:
            return answer.result(self._timeouts.silence_s)
        except concurrent.futures.CancelledError as error:
            raise ConnectionAbortedError("the event loop is ending") from error

    @property
    def turns(self) -> SendTurns:
        """Who may send."""
        return self._turns

    @property
    def timeouts(self) -> Timeouts:
        """Bounds on waiting."""
        return self._timeouts

    def find(self, rank: int, iteration: int) -> ReadablePart:
        """Return a part of the source's.

        Raises:
            PartMissingError: it is not held.
        """
        return self.in_loop(lambda: self._source.open(rank, iteration))

    def status(self) -> dict[str, Any]:
        """Return what answers a ping."""
        return self.in_loop(self._status)


def _join(threads: Iterable[threading.Thread]) -> None:
    deadline_s = time.monotonic() + _CLOSE_S
    for thread in threads:
        thread.join(max(0.0, deadline_s - time.monotonic()))


class _Session:
    """One peer's connection: requests in, answers out, in order."""

    def __init__(self, server: PeerServer, channel: Channel) -> None:
        self._server = server
        self._channel = channel
        self._timeouts = server.timeouts
        self._part: ReadablePart | None = None
        self._fetch = ""

    def run(self) -> None:
        """Answer until the peer leaves.

        Raises:
            OSError: the connection ended, in order or not.
        """
        try:
            self._serve()
        finally:
            self._server.telling.leave(self._channel)

    def _serve(self) -> None:
        while True:
            frame = self._channel.receive(timeout_s=self._timeouts.idle_s)
            match frame.kind:
                case Kind.PING:
                    self._ping(frame)
                case Kind.BEAT:
                    self._request(frame)
                case Kind.LIST | Kind.READ | Kind.TELL:
                    self._tell(frame)
                case Kind.OPEN:
                    self._open(frame)
                case Kind.GET:
                    self._send_chunks(frame)
                case Kind.GET_META:
                    self._request(frame)
                    meta = bytes(self._opened().meta)
                    self._channel.send(
                        Kind.META, meta, timeout_s=self._timeouts.transfer_s(len(meta))
                    )
                case _:
                    raise BrokenFrameError(f"a client does not send {frame.kind.name}")

    def _ping(self, frame: Frame) -> None:
        received_ns = self._server.telling.clock_ns()
        self._request(frame)
        clock = {"received_ns": received_ns}
        status = self._server.status()
        self._answer(Kind.STATUS, status | clock | {"sent_ns": self._server.telling.clock_ns()})

    def _tell(self, frame: Frame) -> None:
        try:
            self._server.telling.answer(self._channel, frame)
        except PartMissingError as error:
            self._answer(Kind.FAILURE, {"code": "missing", "message": str(error)})
        except PeerRefusedError as error:
            self._answer(Kind.FAILURE, {"code": "refused", "message": str(error)})

    def _request(self, frame: Frame) -> bytes:
        return self._channel.receive_body(frame, timeout_s=self._timeouts.silence_s)

    def _answer(self, kind: Kind, document: dict[str, Any]) -> None:
        self._channel.send_json(kind, document, timeout_s=self._timeouts.silence_s)

    def _opened(self) -> ReadablePart:
        if self._part is None:
            raise BrokenFrameError("data asked for before a part was opened")
        return self._part

    def _open(self, frame: Frame) -> None:
        request = self._channel.receive_json(frame, timeout_s=self._timeouts.silence_s)
        try:
            rank, iteration = int(request["rank"]), int(request["iteration"])
            self._fetch, fingerprint = str(request["fetch"]), str(request["fingerprint"])
        except (KeyError, TypeError, ValueError) as error:
            raise BrokenFrameError(f"an OPEN that lacks something: {error!r}") from error
        try:
            part = self._server.find(rank, iteration)
        except PartMissingError as error:
            self._answer(Kind.FAILURE, {"code": "missing", "message": str(error)})
            return
        if part.fingerprint.hex() != fingerprint:
            message = (
                f"its checkpoints are of {part.fingerprint.hex()}, and those of {fingerprint} were "
                "requested: another job, topology or layout"
            )
            self._answer(Kind.FAILURE, {"code": "refused", "message": message})
            return
        self._part = part
        if request.get("urgent") is True:
            go_first()  # this thread serves one connection, of one fetch
        self._answer(
            Kind.PART,
            {
                "data_bytes": part.data.nbytes,
                "chunk_bytes": part.chunk_bytes,
                "meta_bytes": len(part.meta),
                "identity": identity(part.meta, tuple(part.digests)),
                "fingerprint": fingerprint,
            },
        )

    def _send_chunks(self, frame: Frame) -> None:
        count = unpack_count(self._request(frame))
        part = self._opened()
        if frame.index + count > chunk_count(part.data.nbytes, part.chunk_bytes):
            raise BrokenFrameError(f"no chunks {frame.index} to {frame.index + count - 1}")
        for index in range(frame.index, frame.index + count):
            self._send_chunk(part, index)

    def _send_chunk(self, part: ReadablePart, index: int) -> None:
        start = index * part.chunk_bytes
        size_bytes = chunk_size(index, part.data.nbytes, part.chunk_bytes)
        turn = Turn(self._server.turns, self._fetch, self._timeouts.silence_s)
        try:
            with part.data[start : start + size_bytes] as data:
                self._channel.send_chunk(
                    index,
                    data,
                    part.digests[index],
                    timeout_s=self._timeouts.transfer_s(size_bytes),
                    # A receiver that stalls must not hold up those who can receive.
                    on_stall=turn.give_back,
                )
        finally:
            turn.give_back()
