"""One connection of a fetch, opened anew as often as it pays."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections import deque

import xxhash

from castor_runtime.transport import channel as channels
from castor_runtime.transport.channel import Channel
from castor_runtime.transport.credentials import Credentials
from castor_runtime.transport.errors import (
    BrokenFrameError,
    PartMissingError,
    PeerError,
    PeerRefusedError,
)
from castor_runtime.transport.fetching import ChunkRange, Fetching, PartRequest
from castor_runtime.transport.parts import chunk_size
from castor_runtime.transport.timeouts import Timeouts
from castor_runtime.transport.wire import Frame, Kind, pack_count

_RANGES_UNDER_WAY = 2
_ATTEMPTS = 5
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port` or `[host]:port`.

    Raises:
        ValueError: it is neither.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"the address of a peer is host:port, not {address!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


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

    def open(self) -> Channel:
        """Return a new connection; the one before is closed.

        Raises:
            PeerRefusedError: one side refuses the other.
            OSError: there is no connection.
        """
        self.close()
        connection = channels.connected(self._where, self._timeouts.connect_s, self._own)
        try:
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
            if self._connection is not None:
                channels.interrupt(self._connection)

    def _register(self, connection: socket.socket) -> None:
        with self._lock:
            self._connection = connection
            if self._interrupted:
                raise ConnectionAbortedError("no longer wanted")


class Stream:
    """Fetches chunks over one connection, in a thread of its own, until the fetch is over.

    Args:
        dialler: opens its connections.
        fetching: shared with the other streams.
        data: where the data go; nothing is written there after `run` has returned.
        timeouts: bounds on waiting.
    """

    def __init__(
        self, dialler: Dialler, fetching: Fetching, data: memoryview, timeouts: Timeouts
    ) -> None:
        self._dialler = dialler
        self._fetching = fetching
        self._data = data
        self._timeouts = timeouts
        self._request = fetching.request
        self._under_way: deque[ChunkRange] = deque()
        self._has_progressed = False

    def run(self) -> None:
        """Fetch until nothing is left; failures are told to the fetch, none is raised."""
        failures = 0
        try:
            while not self._fetching.is_over:
                self._has_progressed = False
                try:
                    self._receive_all(open_part(self._dialler, self._fetching, self._timeouts))
                except PeerError as error:
                    # A new exception: the old one's traceback keeps views of the data.
                    self._fetching.fail(type(error)(f"{self._request}: {error}"))
                except OSError as error:
                    self._return_runs()
                    failures = 1 if self._has_progressed else failures + 1
                    if not self._go_on(failures, str(error) or type(error).__name__):
                        return
        finally:
            self._dialler.close()

    def interrupt(self) -> None:
        """Make `run` return soon, from another thread."""
        self._dialler.interrupt()

    def _go_on(self, failures: int, reason: str) -> bool:
        if self._fetching.is_over:
            return False
        silent_s = time.monotonic() - self._fetching.last_progress_s
        if failures >= _ATTEMPTS or silent_s > self._timeouts.patience_s:
            self._fetching.give_up_stream(f"{reason} (after {failures} attempts)")
            return False
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (failures - 1))
        return self._fetching.reconnecting(pause_s)

    def _return_runs(self) -> None:
        while self._under_way:
            self._fetching.put_back(self._under_way.pop())

    def _receive_all(self, channel: Channel) -> None:
        while True:
            while len(self._under_way) < _RANGES_UNDER_WAY:
                wanted = self._fetching.take(wait=not self._under_way)
                if wanted is None:
                    break
                self._under_way.append(wanted)
                self._ask(channel, wanted)
            if not self._under_way:
                return
            if self._under_way[0].is_meta:
                self._receive_meta(channel)
            else:
                self._receive_chunks(channel)

    def _ask(self, channel: Channel, wanted: ChunkRange) -> None:
        timeout_s = self._timeouts.silence_s
        if wanted.is_meta:
            channel.send(Kind.GET_META, timeout_s=timeout_s)
        else:
            channel.send(
                Kind.GET, pack_count(wanted.count), index=wanted.first, timeout_s=timeout_s
            )

    def _receive_meta(self, channel: Channel) -> None:
        frame = expect(channel, Kind.META, self._timeouts.silence_s)
        meta = channel.receive_body(
            frame,
            limit_bytes=self._fetching.meta_bytes,
            timeout_s=self._timeouts.transfer_s(self._fetching.meta_bytes),
        )
        self._under_way.popleft()
        self._fetching.arrived_meta(meta)

    def _receive_chunks(self, channel: Channel) -> None:
        while True:
            wanted = self._under_way[0]
            size_bytes = chunk_size(
                wanted.first, self._request.data_bytes, self._request.chunk_bytes
            )
            frame = expect(channel, Kind.CHUNK, self._timeouts.silence_s)
            if frame.index != wanted.first or frame.length_bytes != size_bytes:
                raise BrokenFrameError(
                    f"chunk {frame.index} of {frame.length_bytes} bytes came, "
                    f"{wanted.first} of {size_bytes} was requested"
                )
            start = wanted.first * self._request.chunk_bytes
            with self._data[start : start + size_bytes] as into:
                channel.receive_data(into, timeout_s=self._timeouts.transfer_s(size_bytes))
                digest = xxhash.xxh3_64_intdigest(into)
            # Before the chunk is counted: what is under way is asked again if anything fails.
            self._under_way[0] = ChunkRange(wanted.first + 1, wanted.count - 1)
            if digest == frame.digest:
                self._has_progressed = True
                self._fetching.arrived(wanted.first, digest)
            else:
                self._fetching.corrupt(wanted.first)
            if wanted.count == 1:
                self._under_way.popleft()
                return


def open_part(dialler: Dialler, fetching: Fetching, timeouts: Timeouts) -> Channel:
    """Return a connection on which the part is opened and compared with what is expected.

    Raises:
        PartMissingError: the peer does not hold it, or holds another one by now.
        PeerRefusedError: one side refuses the other, or sizes do not match.
        OSError: the connection is lost.
    """
    request = fetching.request
    channel = dialler.open()
    channel.send_json(
        Kind.OPEN,
        {
            "fetch": request.fetch,
            "rank": request.rank,
            "iteration": request.iteration,
            "fingerprint": request.fingerprint,
        },
        timeout_s=timeouts.silence_s,
    )
    frame = expect(channel, Kind.PART, timeouts.silence_s)
    found = channel.receive_json(frame, timeout_s=timeouts.silence_s)
    meta_bytes = _compare(request, found)
    if not fetching.is_of(str(found.get("identity"))):
        raise PartMissingError("the peer's checkpoint was replaced while it was fetched")
    fetching.expect_meta(meta_bytes)
    return channel


def _compare(request: PartRequest, found: dict[str, object]) -> int:
    """Return the size of the metadata of a part that is what was asked for."""
    expected = {
        "fingerprint": request.fingerprint,
        "data_bytes": request.data_bytes,
        "chunk_bytes": request.chunk_bytes,
    }
    for name, value in expected.items():
        if found.get(name) != value:
            raise PeerRefusedError(
                f"the peer's part has {name} {found.get(name)}, this side planned for {value}; "
                "nothing was received"
            )
    meta_bytes = found.get("meta_bytes")
    if not isinstance(meta_bytes, int) or meta_bytes < 0:
        raise PeerRefusedError(
            f"the peer's part has {meta_bytes!r} bytes of metadata; nothing was received"
        )
    return meta_bytes


def expect(channel: Channel, kind: Kind, timeout_s: float) -> Frame:
    """Return the header of the frame that is due.

    Raises:
        PartMissingError: the peer has not got what was asked for.
        PeerRefusedError: it refuses.
        BrokenFrameError: another frame came.
        OSError: the connection is lost.
    """
    frame = channel.receive(timeout_s=timeout_s)
    if frame.kind is Kind.FAILURE:
        failure = channel.receive_json(frame, timeout_s=timeout_s)
        message = str(failure.get("message"))
        if failure.get("code") == "missing":
            raise PartMissingError(message)
        raise PeerRefusedError(message)
    if frame.kind is not kind:
        raise BrokenFrameError(f"{frame.kind.name} came where {kind.name} was due")
    return frame
