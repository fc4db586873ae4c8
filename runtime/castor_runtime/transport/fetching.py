"""What the streams of one fetch share: what is still to be had, from whom, and how it ends.

Streams of all holders take ranges of chunks from one queue, so a fast holder serves more. A holder
that dies, refuses, or whose copy is damaged or another one, gives back what its streams had taken,
and the fetch goes on from the others: it has failed once none is left. A range is one stream's at a
time, and only that stream's thread gives it back, so nobody writes where another has verified.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from castor_configs.errors import InputError
from castor_runtime.transport.errors import (
    CorruptPartError,
    PartMissingError,
    PeerError,
    PeerRefusedError,
    PeerUnreachableError,
)
from castor_runtime.transport.parts import chunk_count

# What a stream asks for at once; it keeps two such requests under way.
_RANGE_BYTES = 8 << 20
_RANGES_EACH = 4
# A stream that brings nothing for so long, and for so many times what a chunk takes another holder
# that has nothing left to do, gives its ranges to that one.
_SLOW_S = 1.0
_SLOW_CHUNKS = 4
_LOOK_S = 0.25


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
    """What is fetched.

    Attributes:
        fetch: names this fetch to the holders, the same on all its streams.
        rank: whose part.
        iteration: which checkpoint.
        fingerprint: what it has to be of, hex.
        data_bytes: size of the data, as planned here.
        chunk_bytes: size of a chunk, as planned here.
        urgent: training waits for it; see `go_first`.
    """

    fetch: str
    rank: int
    iteration: int
    fingerprint: str
    data_bytes: int
    chunk_bytes: int
    urgent: bool = False

    def of(self, address: str) -> str:
        """Return what is fetched from that holder, for people."""
        return f"rank {self.rank}, iteration {self.iteration} from {address}"


@dataclass(slots=True, eq=False)
class _Holder:
    """One holder in a fetch.

    Attributes:
        address: host:port.
        streams: of its streams, those that have not given up.
        chunks: what came from it, verified.
        failure: why nothing more is taken from it.
        agreed: it has been seen to hold what is fetched.
        differs: it holds another checkpoint of that rank and iteration, and did so from the start.
        damaged: chunks of its that did not match their digests once.
    """

    address: str
    streams: int
    chunks: int = 0
    failure: PeerError | None = None
    agreed: bool = False
    differs: bool = False
    damaged: set[int] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Share:
    """One stream's part in a fetch. Only `Fetching` changes it.

    Attributes:
        holder: whom the stream fetches from.
        cut: ends what the stream waits for, from another thread; it may connect again.
        under_way: what it has taken and not brought, in the order in which it has to ask.
        since_s: when it brought something last, or began to have something under way.
        was_cut: it was found slow, and gave its ranges to others.
    """

    holder: _Holder
    cut: Callable[[], None]
    under_way: deque[ChunkRange] = field(default_factory=deque)
    since_s: float = 0.0
    was_cut: bool = False


class Fetching:
    """Progress of one fetch, shared by the threads of its streams.

    Args:
        request: what is fetched.
        holders: for each address how many streams, and so threads, fetch from it.
        make_room: called with the size of the metadata before they come.
    """

    def __init__(
        self,
        request: PartRequest,
        holders: Mapping[str, int],
        make_room: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.request = request
        self.meta = b""
        self.meta_bytes = 0
        self._make_room = make_room
        self.digests = [0] * chunk_count(request.data_bytes, request.chunk_bytes)
        self.reconnections = 0
        self.asked_again = 0
        self._holders = {address: _Holder(address, count) for address, count in holders.items()}
        self._shares: list[Share] = []
        self._identity: str | None = None
        self._missing = len(self.digests)
        self._has_meta = False
        self._stopped = False
        self._began_s = self._last_progress_s = time.monotonic()
        chunks = len(self.digests)
        # So many that the streams of a slow holder can take fewer than those of a fast one.
        shared = chunks // (_RANGES_EACH * sum(holders.values()))
        per_range = max(1, min(_RANGE_BYTES // request.chunk_bytes, shared))
        self._pending = deque([META])
        self._pending.extend(
            ChunkRange(first, min(per_range, chunks - first))
            for first in range(0, chunks, per_range)
        )
        self._changed = threading.Condition()

    def join(self, address: str, cut: Callable[[], None]) -> Share:
        """Let one more stream take part; for `cut` see `Share`."""
        with self._changed:
            share = Share(self._holders[address], cut)
            self._shares.append(share)
            return share

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to do: complete, stopped, or no holder is left."""
        with self._changed:
            return self._is_over()

    def is_over_for(self, share: Share) -> bool:
        """Whether that stream has nothing more to do."""
        with self._changed:
            return self._is_over_for(share)

    @property
    def failure(self) -> PeerError | None:
        """Why nothing more can be had; None while there is a holder, and once all is here."""
        with self._changed:
            failures = [one.failure for one in self._holders.values() if one.failure is not None]
            if self._is_complete() or len(failures) < len(self._holders):
                return None
            return together(failures)

    @property
    def differing(self) -> list[str]:
        """Whose checkpoints of that rank and iteration differ from what was fetched, all along."""
        with self._changed:
            return [one.address for one in self._holders.values() if one.differs]

    @property
    def chunks_from(self) -> dict[str, int]:
        """How many chunks came from which holder, the most first."""
        with self._changed:
            found = sorted(self._holders.values(), key=lambda one: -one.chunks)
            return {one.address: one.chunks for one in found if one.chunks}

    @property
    def last_progress_s(self) -> float:
        """When the last chunk arrived, or the fetch began, by the monotonic clock."""
        with self._changed:
            return self._last_progress_s

    def take(self, share: Share, *, wait: bool) -> ChunkRange | None:
        """Return what to ask for next; None: nothing now, or, if `wait`, nothing ever."""
        with self._changed:
            while not self._is_over_for(share):
                # Nobody takes a second range while another stream may go without a first.
                if len(self._pending) > (0 if wait else len(self._shares)):
                    if not share.under_way:
                        share.since_s = time.monotonic()
                    share.under_way.append(self._pending.popleft())
                    return share.under_way[-1]
                if not wait:
                    return None
                self._changed.wait(self._cut_a_slow_one(share.holder))
            return None

    def give_back(self, share: Share) -> None:
        """Let others have what that stream has not brought; called by its own thread only."""
        with self._changed:
            while share.under_way:
                self._pending.appendleft(share.under_way.pop())
            self._changed.notify_all()

    def arrived(self, share: Share, digest: int) -> None:
        """Note the chunk that was due, in place, with the digest that it should have."""
        with self._changed:
            self.digests[self._brought(share)] = digest
            share.holder.chunks += 1
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

    def arrived_meta(self, share: Share, meta: bytes) -> None:
        """Note the metadata, which were due."""
        with self._changed:
            share.under_way.popleft()
            share.since_s = time.monotonic()
            self.meta = meta
            self._has_meta = True
            self._progressed()

    def corrupt(self, share: Share) -> None:
        """Note that the chunk that was due does not match its digest.

        Once may be the link's doing: it is asked for again. Twice is its holder's.
        """
        with self._changed:
            index = self._brought(share)
            self.asked_again += 1
            self._pending.appendleft(ChunkRange(index, 1))
            if index in share.holder.damaged:
                what = (
                    f"{self.request.of(share.holder.address)}: chunk {index} arrived twice with a "
                    "digest that does not match; the peer's copy is damaged"
                )
                self._leave(share.holder, CorruptPartError(what))
            share.holder.damaged.add(index)
            self._changed.notify_all()

    def check_identity(self, share: Share, identity: str) -> None:
        """Compare what a stream found with what the others fetch; the first one decides.

        Which is right nobody can say of two that are whole and of one fingerprint; what counts is
        that they are not mixed. A holder of another one is kept for when this one cannot be had.

        Raises:
            PartMissingError: it is another checkpoint.
        """
        with self._changed:
            if self._identity is None:
                self._identity = identity
            if self._identity == identity:
                share.holder.agreed = True
            elif share.holder.agreed:
                raise PartMissingError("the peer's checkpoint was replaced while it was fetched")
            else:
                share.holder.differs = True
                raise PartMissingError("the peer's checkpoint differs from the other holders'")

    def fail(self, share: Share, failure: PeerError) -> None:
        """Take a stream's holder out, with all its streams; its first failure counts."""
        with self._changed:
            self._leave(share.holder, failure)

    def give_up_stream(self, share: Share, reason: str) -> None:
        """Take a stream out; its holder goes with the last of them."""
        with self._changed:
            share.holder.streams -= 1
            if not share.holder.streams:
                where = self.request.of(share.holder.address)
                self._leave(share.holder, PeerUnreachableError(f"{where}: {reason}"))

    def reconnecting(self, share: Share, pause_s: float) -> bool:
        """Wait before a new connection; False when that stream's work is over meanwhile."""
        with self._changed:
            self.reconnections += 1
            return not self._changed.wait_for(lambda: self._is_over_for(share), pause_s)

    def stop(self) -> None:
        """End the fetch without a result: its caller no longer wants it."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _brought(self, share: Share) -> int:
        """Return the chunk that was due from a stream; the next one is due from now on."""
        wanted = share.under_way.popleft()
        if wanted.count > 1:
            share.under_way.appendleft(ChunkRange(wanted.first + 1, wanted.count - 1))
        share.since_s = time.monotonic()
        return wanted.first

    def _progressed(self) -> None:
        self._last_progress_s = time.monotonic()
        if self._is_complete():
            self._changed.notify_all()

    def _leave(self, holder: _Holder, failure: PeerError) -> None:
        if holder.failure is None:
            holder.failure = failure
            for share in self._shares:
                if share.holder is holder:
                    share.cut()
        self._changed.notify_all()

    def _cut_a_slow_one(self, idle: _Holder) -> float | None:
        """Have a stream that brings nothing give its ranges to an idle holder, each stream once.

        Returns:
            After how many seconds to look again; None: nothing that could be slow is under way.
        """
        others = [
            share
            for share in self._shares
            if share.under_way and share.holder is not idle and not share.was_cut
        ]
        if not others:
            return None
        now_s = time.monotonic()
        chunk_s = (now_s - self._began_s) * idle.streams / max(1, idle.chunks)
        slowest = min(others, key=lambda share: share.since_s)
        if now_s - slowest.since_s > max(_SLOW_S, _SLOW_CHUNKS * chunk_s):
            slowest.was_cut = True
            slowest.cut()
        return _LOOK_S

    def _is_complete(self) -> bool:
        return self._has_meta and not self._missing

    def _is_over(self) -> bool:
        gone = all(one.failure is not None for one in self._holders.values())
        return self._stopped or gone or self._is_complete()

    def _is_over_for(self, share: Share) -> bool:
        return share.holder.failure is not None or self._is_over()


def together(failures: Sequence[PeerError]) -> PeerError:
    """Return one failure for those of all holders, of the kind that says most of the part."""
    if len(failures) == 1:
        return failures[0]
    silent = (PeerUnreachableError, PeerRefusedError)
    telling = [failure for failure in failures if not isinstance(failure, silent)]
    return type((telling or failures)[0])("; ".join(map(str, failures)))
