"""What the streams of one fetch share: what is still to be had, and how it ends."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from castor_configs.errors import InputError
from castor_runtime.transport.errors import (
    CorruptPartError,
    PeerError,
    PeerRefusedError,
    PeerUnreachableError,
)
from castor_runtime.transport.parts import chunk_count

# What a stream asks for at once; it keeps two such requests under way.
_RANGE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class ChunkRange:
    """Chunks to ask for, one after the other; none of them: the metadata.

    Attributes:
        first: index of the first chunk.
        count: how many.
    """

    first: int
    count: int

    @property
    def is_meta(self) -> bool:
        """Whether the metadata are meant."""
        return self.count == 0


META = ChunkRange(0, 0)


@dataclass(frozen=True, slots=True)
class PartRequest:
    """What is fetched from where.

    Attributes:
        address: host:port of the peer.
        fetch: names this fetch to the peer, the same on all its streams.
        rank: whose part.
        iteration: which checkpoint.
        fingerprint: what it has to be of, hex.
        data_bytes: size of the data, as planned here.
        chunk_bytes: size of a chunk, as planned here.
    """

    address: str
    fetch: str
    rank: int
    iteration: int
    fingerprint: str
    data_bytes: int
    chunk_bytes: int

    def __str__(self) -> str:
        return f"rank {self.rank}, iteration {self.iteration} from {self.address}"


class Fetching:
    """Progress of one fetch, shared by the threads of its streams.

    Args:
        request: what is fetched.
        streams: how many threads take part.
        make_room: called with the size of the metadata before they come.
    """

    def __init__(
        self,
        request: PartRequest,
        streams: int,
        make_room: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.request = request
        self.meta = b""
        self.meta_bytes = 0
        self._make_room = make_room
        self.digests = [0] * chunk_count(request.data_bytes, request.chunk_bytes)
        self.reconnections = 0
        self.asked_again = 0
        self.failure: PeerError | None = None
        self._identity: str | None = None
        self._streams = streams
        self._asked_twice: set[int] = set()
        self._missing = len(self.digests)
        self._has_meta = False
        self._stopped = False
        self._last_progress_s = time.monotonic()
        per_range = max(1, _RANGE_BYTES // request.chunk_bytes)
        chunks = len(self.digests)
        self._pending = deque([META])
        self._pending.extend(
            ChunkRange(first, min(per_range, chunks - first))
            for first in range(0, chunks, per_range)
        )
        self._changed = threading.Condition()

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to do: complete, failed or stopped."""
        with self._changed:
            return self._is_over()

    @property
    def last_progress_s(self) -> float:
        """When the last chunk arrived, or the fetch began, by the monotonic clock."""
        with self._changed:
            return self._last_progress_s

    def take(self, *, wait: bool) -> ChunkRange | None:
        """Return what to ask for next; None: nothing now, or, if `wait`, nothing ever."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._pending or self._is_over())
            if self._is_over() or not self._pending:
                return None
            return self._pending.popleft()

    def put_back(self, wanted: ChunkRange) -> None:
        """Give up what was taken, or what is left of it; another stream may take it."""
        with self._changed:
            self._pending.appendleft(wanted)
            self._changed.notify_all()

    def arrived(self, index: int, digest: int) -> None:
        """Note a chunk that is in place and matches its digest."""
        with self._changed:
            self.digests[index] = digest
            self._missing -= 1
            self._progressed()

    def expect_meta(self, size_bytes: int) -> None:
        """Note the size of the metadata that will come, once there is room for them.

        Raises:
            PeerRefusedError: there is none.
        """
        with self._changed:
            try:
                self._make_room(size_bytes)
            except (InputError, ValueError, OSError) as error:
                raise PeerRefusedError(
                    f"the peer's part has {size_bytes} bytes of metadata: {error}"
                ) from error
            self.meta_bytes = size_bytes

    def arrived_meta(self, meta: bytes) -> None:
        """Note the metadata."""
        with self._changed:
            self.meta = meta
            self._has_meta = True
            self._progressed()

    def corrupt(self, index: int) -> None:
        """Note a chunk that does not match its digest: ask once more, then fail."""
        with self._changed:
            if index in self._asked_twice:
                self._fail(
                    CorruptPartError(
                        f"{self.request}: chunk {index} arrived twice with a digest that does not "
                        "match; the peer's copy is damaged"
                    )
                )
                return
            self._asked_twice.add(index)
            self.asked_again += 1
            self._pending.appendleft(ChunkRange(index, 1))
            self._changed.notify_all()

    def is_of(self, identity: str) -> bool:
        """Say whether a stream found the same checkpoint as the others; the first one decides."""
        with self._changed:
            if self._identity is None:
                self._identity = identity
            return self._identity == identity

    def fail(self, failure: PeerError) -> None:
        """End the fetch for all streams; the first failure counts."""
        with self._changed:
            self._fail(failure)

    def give_up_stream(self, reason: str) -> None:
        """Take a stream out; the fetch fails with the last of them."""
        with self._changed:
            self._streams -= 1
            if not self._streams and not self._is_complete():
                self._fail(PeerUnreachableError(f"{self.request}: {reason}"))

    def reconnecting(self, pause_s: float) -> bool:
        """Wait before a new connection; False when the fetch is over meanwhile."""
        with self._changed:
            self.reconnections += 1
            return not self._changed.wait_for(self._is_over, pause_s)

    def stop(self) -> None:
        """End the fetch without a result: its caller no longer wants it."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _progressed(self) -> None:
        self._last_progress_s = time.monotonic()
        if self._is_complete():
            self._changed.notify_all()

    def _fail(self, failure: PeerError) -> None:
        if self.failure is None:
            self.failure = failure
        self._changed.notify_all()

    def _is_complete(self) -> bool:
        return self._has_meta and not self._missing

    def _is_over(self) -> bool:
        return self._stopped or self.failure is not None or self._is_complete()
