"""One connection of a fetch, opened anew as often as it pays."""

from __future__ import annotations

import time

from castor_runtime.transport.channel import Channel
from castor_runtime.transport.dialler import Dialler
from castor_runtime.transport.errors import (
    BrokenFrameError,
    PartMissingError,
    PeerError,
    PeerRefusedError,
)
from castor_runtime.transport.fetching import ChunkRange, Fetching, PartRequest
from castor_runtime.transport.parts import chunk_size
from castor_runtime.transport.priority import go_first
from castor_runtime.transport.timeouts import Timeouts
from castor_runtime.transport.wire import Frame, Kind, pack_count

_RANGES_UNDER_WAY = 2
_ATTEMPTS = 5
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


class Stream:
    """Fetches chunks over one connection, in a thread of its own, until the fetch is over.

    Args:
        address: host:port of the holder.
        dialler: opens its connections.
        fetching: shared with the other streams.
        data: where the data go; nothing is written there after `run` has returned.
        timeouts: bounds on waiting.
    """

    def __init__(
        self,
        address: str,
        dialler: Dialler,
        fetching: Fetching,
        data: memoryview,
        timeouts: Timeouts,
    ) -> None:
        self._address = address
        self._dialler = dialler
        self._fetching = fetching
        self._data = data
        self._timeouts = timeouts
        self._request = fetching.request
        self._share = fetching.join(address, dialler.cut)
        self._has_progressed = False

    def run(self) -> None:
        """Fetch until nothing is left; failures are told to the fetch, none is raised."""
        failures = 0
        if self._request.urgent:
            go_first()
        try:
            while not self._fetching.is_over_for(self._share):
                self._has_progressed = False
                try:
                    self._receive_all(self._open())
                except PeerError as error:
                    # A new exception: the old one's traceback keeps views of the data.
                    failure = type(error)(f"{self._request.of(self._address)}: {error}")
                    self._fetching.fail(self._share, failure)
                except OSError as error:
                    self._fetching.give_back(self._share)
                    failures = 1 if self._has_progressed else failures + 1
                    if not self._go_on(failures, str(error) or type(error).__name__):
                        return
        finally:
            self._fetching.give_back(self._share)
            self._dialler.close()

    def interrupt(self) -> None:
        """Make `run` return soon, from another thread."""
        self._dialler.interrupt()

    def _open(self) -> Channel:
        channel, identity, meta_bytes = open_part(self._dialler, self._request, self._timeouts)
        self._fetching.check_identity(self._share, identity)
        self._fetching.expect_meta(meta_bytes)
        return channel

    def _go_on(self, failures: int, reason: str) -> bool:
        if self._fetching.is_over_for(self._share):
            return False
        silent_s = time.monotonic() - self._fetching.last_progress_s
        if failures >= _ATTEMPTS or silent_s > self._timeouts.patience_s:
            self._fetching.give_up_stream(self._share, f"{reason} (after {failures} attempts)")
            return False
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (failures - 1))
        return self._fetching.reconnecting(self._share, pause_s)

    def _receive_all(self, channel: Channel) -> None:
        under_way = self._share.under_way
        while not self._fetching.is_over_for(self._share):
            while len(under_way) < _RANGES_UNDER_WAY:
                wanted = self._fetching.take(self._share, wait=not under_way)
                if wanted is None:
                    break
                self._ask(channel, wanted)
            if not under_way:
                return
            if under_way[0].is_meta:
                self._receive_meta(channel)
            else:
                self._receive_chunk(channel, under_way[0].first)

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
        self._fetching.arrived_meta(self._share, meta)

    def _receive_chunk(self, channel: Channel, index: int) -> None:
        size_bytes = chunk_size(index, self._request.data_bytes, self._request.chunk_bytes)
        frame = expect(channel, Kind.CHUNK, self._timeouts.silence_s)
        if frame.index != index or frame.length_bytes != size_bytes:
            raise BrokenFrameError(
                f"chunk {frame.index} of {frame.length_bytes} bytes came, "
                f"{index} of {size_bytes} was requested"
            )
        start = index * self._request.chunk_bytes
        with self._data[start : start + size_bytes] as into:
            digest = channel.receive_data(into, timeout_s=self._timeouts.transfer_s(size_bytes))
        if digest == frame.digest:
            self._has_progressed = True
            self._fetching.arrived(self._share, digest)
        else:
            self._fetching.corrupt(self._share)


def open_part(
    dialler: Dialler, request: PartRequest, timeouts: Timeouts
) -> tuple[Channel, str, int]:
    """Open a part on a new connection, and compare it with what is expected.

    Returns:
        The connection, the checkpoint's identity, and the size of its metadata.

    Raises:
        PartMissingError: the peer does not hold it.
        PeerRefusedError: one side refuses the other, or sizes do not match.
        OSError: the connection is lost.
    """
    channel = dialler.open()
    channel.send_json(
        Kind.OPEN,
        {
            "fetch": request.fetch,
            "rank": request.rank,
            "iteration": request.iteration,
            "fingerprint": request.fingerprint,
            "urgent": request.urgent,
        },
        timeout_s=timeouts.silence_s,
    )
    frame = expect(channel, Kind.PART, timeouts.silence_s)
    found = channel.receive_json(frame, timeout_s=timeouts.silence_s)
    return channel, str(found.get("identity")), _compare(request, found)


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
