"""Fetches parts from peers, and asks how they are."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from castor_policy.agents.job_spec import check_run
from castor_policy.membership import BEATS
from castor_runtime.transport.channel import Channel
from castor_runtime.transport.credentials import Credentials
from castor_runtime.transport.dialler import Dialler, parse_address
from castor_runtime.transport.errors import PeerError, PeerRefusedError, PeerUnreachableError
from castor_runtime.transport.fetching import Fetching, PartRequest, together
from castor_runtime.transport.link import PeerLink
from castor_runtime.transport.parts import WritablePart, chunk_count
from castor_runtime.transport.reading import CLOCK, PeerClock, ask_clock, ping
from castor_runtime.transport.stream import Stream
from castor_runtime.transport.timeouts import Timeouts

_T = TypeVar("_T")

# Measured over loopback on two cores: 1 GiB in 0.32 s with one stream, 0.24 s with two, and no
# less with four.
_STREAMS = 2
_MOST_STREAMS = 16

# A host that goes while its agent greets a link is missed for so long.
_LINK_S = 2.0


@dataclass(frozen=True, slots=True)
class FetchStats:
    """What a fetch took.

    Attributes:
        bytes: of data and metadata that are in place.
        seconds: from the call until the commit.
        chunks_from: how many chunks came from the holder at each address, the most first.
        reconnections: how often a connection was opened anew.
        asked_again: chunks that arrived damaged once.
    """

    bytes: int
    seconds: float
    chunks_from: Mapping[str, int]
    reconnections: int = 0
    asked_again: int = 0


class PeerClient:
    """Talks to peers' servers; but for links, it holds no connection between calls.

    Args:
        credentials: what both sides prove.
        run: which run of the job both belong to; see `JobSpec.run`.
        streams: connections of one fetch to each holder.
        timeouts: bounds on waiting for a peer.
        own: address of this host that connections come from, which its certificate names; "": as
            the system chooses.

    Raises:
        ValueError: there is no stream, or the run is none.
        OSError: a certificate cannot be read.
    """

    def __init__(
        self,
        credentials: Credentials,
        run: str,
        *,
        streams: int = _STREAMS,
        timeouts: Timeouts | None = None,
        own: str = "",
    ) -> None:
        if streams < 1:
            raise ValueError(f"a fetch needs 1 stream or more, not {streams}")
        check_run(run)
        self._credentials = credentials
        self._run = run
        self._context = credentials.client_context()
        self._streams = streams
        self._timeouts = timeouts or Timeouts()
        self._own = own if self._context is not None else ""

    async def fetch(
        self,
        addresses: Sequence[str],
        rank: int,
        iteration: int,
        fingerprint: bytes,
        writing: WritablePart,
        *,
        urgent: bool = False,
    ) -> FetchStats:
        """Fill `writing` with a part that several peers hold, from all of them at once; commit it.

        Who is faster serves more of it. A dropped connection is opened anew, and only what is
        missing is asked for; a holder that dies, refuses, or whose copy is damaged leaves the rest
        to the others. Two checkpoints of the rank and iteration are never mixed: those who hold
        another one than the first to answer are asked, for all of it, once that one cannot be had.
        When this returns or raises, cancelled or not, nobody writes to `writing.data` any more.
        When it raises, the caller abandons the writing, or goes on with other peers.

        Args:
            addresses: host:port of each holder's server.
            rank: whose part.
            iteration: which checkpoint.
            fingerprint: what it must be of.
            writing: where it goes.
            urgent: training waits for it: where cores are short its threads go first, here and at
                the holders.

        Raises:
            PeerUnreachableError: no connection lasts long enough. This and the others: of all
                holders together; of several kinds the one that says most of the part.
            PeerRefusedError: one side refuses the other: credentials, fingerprint, sizes, or no
                memory for the peer's metadata.
            PartMissingError: the peer does not hold it complete.
            CorruptPartError: the peer's copy is damaged.
            ValueError: an address is none, or there is no holder.
        """
        started_s = time.monotonic()
        left = list(dict.fromkeys(addresses))
        if not left:
            raise ValueError("a fetch needs a holder to fetch from")
        failures: list[PeerError] = []
        reconnections = asked_again = 0
        while True:
            request = PartRequest(
                fetch=secrets.token_hex(8),
                rank=rank,
                iteration=iteration,
                fingerprint=fingerprint.hex(),
                data_bytes=writing.data.nbytes,
                chunk_bytes=writing.chunk_bytes,
                urgent=urgent,
            )
            fetching = await self._fetch(left, request, writing)
            reconnections += fetching.reconnections
            asked_again += fetching.asked_again
            if (failure := fetching.failure) is None:
                break
            failures.append(failure)
            left = fetching.differing
            if not left:
                raise together(failures)
        return FetchStats(
            bytes=writing.data.nbytes + len(fetching.meta),
            seconds=time.monotonic() - started_s,
            chunks_from=fetching.chunks_from,
            reconnections=reconnections,
            asked_again=asked_again,
        )

    async def _fetch(
        self, addresses: Sequence[str], request: PartRequest, writing: WritablePart
    ) -> Fetching:
        """Fetch one checkpoint, and commit it unless that fails."""
        chunks = chunk_count(request.data_bytes, request.chunk_bytes)
        each = min(self._streams, max(1, chunks), max(1, _MOST_STREAMS // len(addresses)))
        fetching = Fetching(request, dict.fromkeys(addresses, each), writing.make_room)
        workers = [
            Stream(
                address,
                self._dialler(*parse_address(address)),
                fetching,
                writing.data,
                self._timeouts,
            )
            for _ in range(each)
            for address in addresses
        ]
        with ThreadPoolExecutor(len(workers), "castor-fetch") as pool:
            await _run(pool, fetching, workers)
            if fetching.failure is None:
                loop = asyncio.get_running_loop()
                committed = loop.run_in_executor(pool, _commit, fetching, writing)
                await _settled([committed])
                committed.result()
        return fetching

    async def ping(self, address: str, timeout_s: float) -> dict[str, Any]:
        """Return what the peer's server says of its agent's state.

        Args:
            address: host:port of the peer's server.
            timeout_s: bound on the whole call.

        Raises:
            PeerUnreachableError: no answer in that time.
            PeerRefusedError: one side refuses the other.
            ValueError: the address is none, or the timeout is not above 0.
        """
        status = await self._asked(address, timeout_s, ping)
        return {name: said for name, said in status.items() if name not in CLOCK}

    async def clock(
        self, address: str, timeout_s: float, clock_ns: Callable[[], int] = time.time_ns
    ) -> PeerClock:
        """Return how far the clock of the peer's host is from `clock_ns`.

        Raises:
            PeerUnreachableError: no answer in that time.
            PeerRefusedError: one side refuses the other.
            ValueError: the address is none, or the timeout is not above 0.
        """
        return await self._asked(address, timeout_s, partial(ask_clock, clock_ns=clock_ns))

    def link(
        self, address: str, incarnation: str, within_s: float, tell: Callable[[bool], None]
    ) -> PeerLink:
        """Return a link to a life of an agent, at its address; see `PeerLink`.

        Raises:
            ValueError: the address is none.
        """
        host, port = parse_address(address)
        timeouts = replace(
            self._timeouts, connect_s=within_s / BEATS, handshake_s=_LINK_S, silence_s=_LINK_S
        )
        dialler = self._dialler(host, port, timeouts)
        return PeerLink(dialler, timeouts, incarnation, within_s, tell)

    async def _asked(
        self, address: str, timeout_s: float, ask: Callable[[Channel, Timeouts], _T]
    ) -> _T:
        host, port = parse_address(address)
        timeouts = replace(
            self._timeouts, connect_s=timeout_s, handshake_s=timeout_s, silence_s=timeout_s
        )
        dialler = self._dialler(host, port, timeouts)
        loop = asyncio.get_running_loop()
        pool = ThreadPoolExecutor(1, "castor-ping")

        def asked_once() -> _T:
            with contextlib.closing(dialler):
                return ask(dialler.open(), timeouts)

        try:
            return await asyncio.wait_for(loop.run_in_executor(pool, asked_once), timeout_s)
        except PeerRefusedError as error:
            raise PeerRefusedError(f"{address}: {error}") from error
        except OSError as error:
            reason = str(error) or f"no answer within {timeout_s:g} s"
            raise PeerUnreachableError(f"{address}: {reason}") from error
        finally:
            dialler.interrupt()
            pool.shutdown(wait=False)

    def _dialler(self, host: str, port: int, timeouts: Timeouts | None = None) -> Dialler:
        return Dialler(
            host,
            port,
            self._credentials,
            self._run,
            self._context,
            timeouts or self._timeouts,
            self._own,
        )


def _commit(fetching: Fetching, writing: WritablePart) -> None:
    writing.commit(fetching.meta, fetching.digests)


async def _run(pool: ThreadPoolExecutor, fetching: Fetching, workers: list[Stream]) -> None:
    loop = asyncio.get_running_loop()
    ended = [loop.run_in_executor(pool, worker.run) for worker in workers]
    running = set(ended)
    try:
        while running and not fetching.is_over:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            if any(stream.exception() is not None for stream in done):
                break
    finally:
        # Whatever ended the fetch, those who still wait for the peer are woken.
        fetching.stop()
        for worker in workers:
            worker.interrupt()
        await _settled(ended)
    for stream in ended:
        stream.result()


async def _settled(futures: Iterable[asyncio.Future[None]]) -> None:
    """Wait for all of them, also when cancelled: their threads write into the caller's memory."""
    pending = set(futures)
    cancelled: asyncio.CancelledError | None = None
    while pending:
        try:
            _, pending = await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
