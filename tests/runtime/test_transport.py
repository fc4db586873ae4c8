"""Parts fetched over real sockets, into real checkpoint memory, over links that fail."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from castor_runtime.arena import IterationMissingError, PartLayout, Replica
from castor_runtime.arena.layout import SegmentOwner
from castor_runtime.transport import (
    CorruptPartError,
    JobSecret,
    PartMissingError,
    PeerClient,
    PeerRefusedError,
    PeerServer,
    PeerUnreachableError,
    ServerLimits,
    Timeouts,
)
from castor_runtime.transport.channel import greet_server
from castor_runtime.transport.dialler import connected, parse_address
from castor_runtime.transport.wire import Kind, pack_count

pytestmark = pytest.mark.long  # together, not one by one

FINGERPRINT = bytes(range(16))
RUN = "0123456789abcdef"
SECRET = JobSecret(b"the secret of a test job, 32 bytes"[:32])
ITERATION = 7


def content(rank: int, size: int) -> bytes:
    pattern = bytes((rank * 31 + i * 7 + (i >> 8)) & 0xFF for i in range(1 << 12))
    return (pattern * (size // len(pattern) + 1))[:size]


@contextmanager
def replica(
    rank: int = 0, size: int = 300_000, chunk: int = 4096, meta: int = 4096, name: str = "part"
) -> Iterator[Replica]:
    with (
        tempfile.TemporaryDirectory() as folder,
        Replica.create(
            f"{name}-{rank}",
            SegmentOwner("job", RUN, name, FINGERPRINT),
            PartLayout(rank, size, meta, chunk),
            folder=Path(folder),
        ) as made,
    ):
        yield made


@contextmanager
def filled(
    rank: int = 0, size: int = 300_000, chunk: int = 4096, meta: bytes = b"meta"
) -> Iterator[Replica]:
    with replica(rank, size, chunk, name="source") as made:
        writing = made.begin(ITERATION, 1, None)
        writing.data[:] = content(rank, size)
        writing.commit(meta)
        del writing
        yield made


@dataclass
class Holder:
    """The source that an agent would be: whatever replicas it holds."""

    replicas: list[Replica]
    opened: int = 0
    threads: set[str] = field(default_factory=set)

    def open(self, rank: int, iteration: int) -> Any:
        self.opened += 1
        self.threads.add(threading.current_thread().name)
        for held in self.replicas:
            if held.rank == rank:
                try:
                    return held.snapshot(iteration)
                except IterationMissingError as error:
                    raise PartMissingError(str(error)) from error
        raise PartMissingError(f"no part of rank {rank}")


def serving(*replicas: Replica, **options: Any) -> PeerServer:
    options.setdefault("credentials", SECRET)
    options.setdefault("source", Holder(list(replicas)))
    return PeerServer("127.0.0.1", run=RUN, status=lambda: {"iteration": ITERATION}, **options)


@dataclass
class Proxy:
    """A link that is cut or damages what the server sends, by connection.

    Attributes:
        cuts: after so many bytes; connections beyond the list are never cut.
        flips: offset of a byte that is inverted.
        delay_s: per block.
        bytes_sent: what passed, in all.
    """

    target: str
    cuts: list[int] = field(default_factory=list)
    flips: list[int] = field(default_factory=list)
    delay_s: float = 0.0
    bytes_sent: int = 0
    connections: int = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        tasks: set[asyncio.Task[None]] = set()

        async def serve(down: asyncio.StreamReader, up: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            with contextlib.suppress(asyncio.CancelledError):
                await self._link(down, up)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks)

    async def _link(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        number = self.connections
        self.connections += 1
        cut = self.cuts[number] if number < len(self.cuts) else None
        flip = self.flips[number] if number < len(self.flips) else None
        to_server: asyncio.StreamWriter | None = None
        try:
            server, to_server = await asyncio.open_connection(*parse_address(self.target))
            forward = asyncio.create_task(self._forward(client, to_server))
            try:
                await self._backward(server, to_client, cut, flip)
            finally:
                forward.cancel()
                await asyncio.gather(forward, return_exceptions=True)
        except OSError:
            pass
        finally:
            to_client.transport.abort()
            if to_server is not None:
                to_server.transport.abort()

    async def _forward(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        while block := await source.read(1 << 16):
            to.write(block)
            await to.drain()

    async def _backward(
        self,
        source: asyncio.StreamReader,
        to: asyncio.StreamWriter,
        cut: int | None,
        flip: int | None,
    ) -> None:
        passed = 0
        while block := await source.read(1 << 14):
            await asyncio.sleep(self.delay_s)
            if flip is not None and passed <= flip < passed + len(block):
                changed = bytearray(block)
                changed[flip - passed] ^= 0xFF
                block = bytes(changed)
            if cut is not None:
                block = block[: cut - passed]
            to.write(block)
            await to.drain()
            passed += len(block)
            self.bytes_sent += len(block)
            if cut is not None and passed >= cut:
                return


def assert_whole(made: Replica, meta: bytes = b"meta") -> None:
    assert made.offered() == {ITERATION}
    assert made.verify(ITERATION) == []
    snapshot = made.snapshot(ITERATION)
    assert bytes(snapshot.data) == content(made.rank, made.data_bytes)
    assert snapshot.meta == meta


@settings(max_examples=25)
@given(
    size=st.integers(1, 200_000),
    chunk=st.sampled_from([512, 4096, 1 << 16, 1 << 20]),
    meta=st.binary(max_size=4096),
    streams=st.integers(1, 4),
)
@example(size=40_000, chunk=1, meta=b"", streams=2)
def test_a_part_arrives_whole(size: int, chunk: int, meta: bytes, streams: int) -> None:
    async def fetch() -> None:
        async with serving(source) as server:
            writing = sink.begin(ITERATION, 2, None)
            client = PeerClient(SECRET, RUN, streams=streams)
            stats = await client.fetch([server.address], 3, ITERATION, FINGERPRINT, writing)
        assert stats.bytes == size + len(meta)
        assert stats.reconnections == stats.asked_again == 0

    chunk = max(chunk, size // 2000)
    with filled(3, size, chunk, meta) as source, replica(3, size, chunk) as sink:
        asyncio.run(fetch())
        assert_whole(sink, meta)


def test_the_source_is_asked_in_the_loop() -> None:
    async def fetch() -> None:
        async with serving(source=holder) as server:
            writing = sink.begin(ITERATION, 2, None)
            await PeerClient(SECRET, RUN).fetch(
                [server.address], 0, ITERATION, FINGERPRINT, writing
            )

    size = 4 << 20
    with filled(0, size, 1 << 20) as source, replica(0, size, 1 << 20) as sink:
        holder = Holder([source])
        asyncio.run(fetch())
    assert holder.threads == {threading.main_thread().name}


@settings(max_examples=15)
@given(cuts=st.lists(st.integers(0, 250_000), min_size=1, max_size=4), streams=st.integers(1, 2))
@example(cuts=[0, 16, 96, 97], streams=1)
def test_a_cut_connection_is_resumed(cuts: list[int], streams: int) -> None:
    async def fetch() -> tuple[int, int]:
        async with serving(source) as server:
            proxy = Proxy(server.address, cuts=cuts)
            async with proxy.running() as address:
                writing = sink.begin(ITERATION, 2, None)
                stats = await PeerClient(SECRET, RUN, streams=streams).fetch(
                    [address], 0, ITERATION, FINGERPRINT, writing
                )
        return stats.reconnections, proxy.connections

    with filled() as source, replica() as sink:
        reconnections, connections = asyncio.run(fetch())
        assert_whole(sink)
    assert connections <= streams + reconnections
    if streams == 1:
        assert reconnections == len([cut for cut in cuts if cut < 300_000])


def test_only_missing_chunks_are_asked_again() -> None:
    async def fetch() -> int:
        async with serving(source) as server:
            proxy = Proxy(server.address, cuts=[250_000])
            async with proxy.running() as address:
                writing = sink.begin(ITERATION, 2, None)
                await PeerClient(SECRET, RUN, streams=1).fetch(
                    [address], 0, ITERATION, FINGERPRINT, writing
                )
        return proxy.bytes_sent

    with filled() as source, replica() as sink:
        sent = asyncio.run(fetch())
        assert_whole(sink)
    headers = 300_000 // 4096 * 40 + 2_000
    assert sent < 300_000 + headers + 4096


@settings(max_examples=30)
@given(offset=st.integers(0, 20_000), streams=st.integers(1, 2))
@example(offset=10, streams=1)
@example(offset=60, streams=1)
@example(offset=100, streams=1)
def test_a_flipped_byte_is_found(offset: int, streams: int) -> None:
    async def fetch() -> tuple[int, int] | None:
        async with (
            serving(source) as server,
            Proxy(server.address, flips=[offset]).running() as address,
        ):
            writing = sink.begin(ITERATION, 2, None)
            try:
                stats = await PeerClient(SECRET, RUN, streams=streams).fetch(
                    [address], 0, ITERATION, FINGERPRINT, writing
                )
            except PeerRefusedError:
                return None
        return stats.reconnections, stats.asked_again

    with filled(size=40_000, chunk=1024) as source, replica(size=40_000, chunk=1024) as sink:
        found = asyncio.run(fetch())
        if found is None:
            assert offset < 88, "only the handshake refuses at once"
            assert sink.offered() == set()
        else:
            assert_whole(sink)
            # With two streams, the one that is damaged may have had less to receive.
            assert sum(found) == 1 or streams == 2


@pytest.mark.parametrize("streams", [1, 2])
def test_damage_in_the_peers_memory_is_an_error(streams: int) -> None:
    async def fetch() -> None:
        async with serving(source) as server:
            writing = sink.begin(ITERATION, 2, None)
            client = PeerClient(SECRET, RUN, streams=streams)
            with pytest.raises(CorruptPartError, match=r"rank 0, iteration 7 .*chunk 5 "):
                await client.fetch([server.address], 0, ITERATION, FINGERPRINT, writing)

    with filled() as source, replica() as sink:
        source.snapshot(ITERATION).data[5 * 4096 + 17] ^= 1
        asyncio.run(fetch())
        assert sink.offered() == set()


@pytest.mark.parametrize(("rank", "iteration"), [(0, 8), (1, ITERATION)])
def test_a_part_that_is_not_held_is_missing(rank: int, iteration: int) -> None:
    async def fetch() -> None:
        async with serving(source) as server:
            writing = sink.begin(ITERATION, 2, None)
            with pytest.raises(PartMissingError, match=f"rank {rank}, iteration {iteration}"):
                await PeerClient(SECRET, RUN).fetch(
                    [server.address], rank, iteration, FINGERPRINT, writing
                )

    with filled() as source, replica() as sink:
        asyncio.run(fetch())


def test_a_checkpoint_that_is_replaced_meanwhile_is_not_mixed() -> None:
    class Changing(Holder):
        def open(self, rank: int, iteration: int) -> Any:
            self.opened += 1
            return self.replicas[rank + (self.opened > 1)].snapshot(iteration)

    async def fetch() -> None:
        async with (
            serving(source=Changing([first, second])) as server,
            Proxy(server.address, cuts=[100_000]).running() as address,
        ):
            writing = sink.begin(ITERATION, 2, None)
            with pytest.raises(PartMissingError, match="replaced"):
                await PeerClient(SECRET, RUN, streams=1).fetch(
                    [address], 0, ITERATION, FINGERPRINT, writing
                )

    with filled(0) as first, filled(1) as second, replica() as sink:
        asyncio.run(fetch())
        assert sink.offered() == set()


@pytest.mark.parametrize(
    ("size", "chunk", "meta", "named"),
    [
        (300_001, 4096, 4096, "data_bytes 300000"),
        (300_000, 8192, 4096, "chunk_bytes 4096"),
        (300_000, 4096, 3, "4 bytes of metadata"),
    ],
)
def test_sizes_are_compared_before_anything_is_received(
    size: int, chunk: int, meta: int, named: str
) -> None:
    async def fetch() -> None:
        async with serving(source) as server:
            writing = sink.begin(ITERATION, 2, None)
            with pytest.raises(PeerRefusedError, match=named):
                await PeerClient(SECRET, RUN).fetch(
                    [server.address], 0, ITERATION, FINGERPRINT, writing
                )
            assert not any(writing.data)

    with filled() as source, replica(size=size, chunk=chunk, meta=meta) as sink:
        asyncio.run(fetch())
        assert sink.offered() == set()


def test_a_foreign_checkpoint_is_refused_by_name() -> None:
    async def fetch() -> None:
        async with serving(source) as server:
            writing = sink.begin(ITERATION, 2, None)
            with pytest.raises(PeerRefusedError, match=f"{FINGERPRINT.hex()}.*{'00' * 16}"):
                await PeerClient(SECRET, RUN).fetch(
                    [server.address], 0, ITERATION, bytes(16), writing
                )
            assert not any(writing.data)

    with filled() as source, replica() as sink:
        asyncio.run(fetch())


def test_a_dead_peer_is_unreachable() -> None:
    with socket.socket() as taken, replica() as sink:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        writing = sink.begin(ITERATION, 2, None)
        fetching = PeerClient(SECRET, RUN).fetch([address], 0, ITERATION, FINGERPRINT, writing)
        with pytest.raises(PeerUnreachableError, match=f"{address}.*refused"):
            asyncio.run(fetching)


def test_a_peer_that_accepts_and_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, replica() as sink:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        writing = sink.begin(ITERATION, 2, None)
        timeouts = Timeouts(connect_s=0.2, handshake_s=0.2, silence_s=0.2, patience_s=0.3)
        client = PeerClient(SECRET, RUN, timeouts=timeouts)
        with pytest.raises(PeerUnreachableError, match=r"timed out|silent"):
            asyncio.run(client.fetch([address], 0, ITERATION, FINGERPRINT, writing))
        with pytest.raises(PeerUnreachableError, match=address):
            asyncio.run(client.ping(address, 0.2))


def test_a_server_that_comes_back_is_asked_for_the_rest() -> None:
    async def fetch() -> int:
        first = serving(source)
        address = await first.start()
        proxy = Proxy(address, delay_s=0.002)
        async with proxy.running() as through:
            writing = sink.begin(ITERATION, 2, None)
            fetching = asyncio.create_task(
                PeerClient(SECRET, RUN).fetch([through], 0, ITERATION, FINGERPRINT, writing)
            )
            while proxy.bytes_sent < 100_000:
                await asyncio.sleep(0.002)
            await first.close()
            async with serving(source) as second:
                proxy.target = second.address
                proxy.delay_s = 0
                return (await fetching).reconnections

    # More than the kernel's buffers hold on the way.
    size, chunk = 32 << 20, 1 << 16
    with filled(0, size, chunk) as source, replica(0, size, chunk) as sink:
        assert asyncio.run(fetch()) >= 1
        assert_whole(sink)


def test_a_cancelled_fetch_leaves_no_thread_that_writes() -> None:
    async def fetch() -> bytes:
        async with serving(source) as server:
            proxy = Proxy(server.address, delay_s=0.01)
            async with proxy.running() as through:
                writing = sink.begin(ITERATION, 2, None)
                fetching = asyncio.create_task(
                    PeerClient(SECRET, RUN).fetch([through], 0, ITERATION, FINGERPRINT, writing)
                )
                while proxy.bytes_sent < 50_000:
                    await asyncio.sleep(0.002)
                fetching.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await fetching
                names = {thread.name for thread in threading.enumerate()}
                assert not [name for name in names if name.startswith("castor-fetch")]
                return bytes(writing.data)

    with filled(size=3_000_000) as source, replica(size=3_000_000) as sink:
        received = asyncio.run(fetch())
        assert received != content(0, len(received))
        assert sink.offered() == set()


def test_many_fetchers_at_once_all_get_their_parts() -> None:
    async def fetch() -> None:
        limits = ServerLimits(connections=64, sends=2)
        async with serving(*sources, limits=limits) as server:
            await asyncio.gather(
                *(
                    PeerClient(SECRET, RUN, streams=1 + number % 3).fetch(
                        [server.address],
                        sink.rank,
                        ITERATION,
                        FINGERPRINT,
                        sink.begin(ITERATION, 2, None),
                    )
                    for number, sink in enumerate(sinks)
                )
            )

    with ExitStack() as stack:
        sources = [stack.enter_context(filled(rank)) for rank in range(4)]
        sinks = [stack.enter_context(replica(number % 4)) for number in range(16)]
        asyncio.run(fetch())
        for sink in sinks:
            assert_whole(sink)


def test_a_receiver_that_stalls_holds_nobody_up() -> None:
    async def fetch() -> float:
        async with serving(source, limits=ServerLimits(sends=1)) as server:
            stalled = await asyncio.to_thread(ask_for_everything, server.address)
            try:
                began = time.monotonic()
                writing = sink.begin(ITERATION, 2, None)
                await PeerClient(SECRET, RUN).fetch(
                    [server.address], 0, ITERATION, FINGERPRINT, writing
                )
                return time.monotonic() - began
            finally:
                stalled.close()

    size, chunk = 64 << 20, 16 << 20
    with filled(0, size, chunk) as source, replica(0, size, chunk) as sink:
        # The server would give the stalled one up after 10 s of silence.
        assert asyncio.run(fetch()) < 9
        assert_whole(sink)


def ask_for_everything(address: str) -> socket.socket:
    connection = connected(parse_address(address), 5)
    channel = greet_server(connection, SECRET, RUN, 30)
    opening = {
        "fetch": "greedy",
        "rank": 0,
        "iteration": ITERATION,
        "fingerprint": FINGERPRINT.hex(),
    }
    channel.send_json(Kind.OPEN, opening, timeout_s=30)
    assert channel.receive(timeout_s=30).kind is Kind.PART
    channel.send(Kind.GET, pack_count(4), timeout_s=30)
    return connection


def test_ping_answers_what_status_says() -> None:
    async def ping() -> dict[str, Any]:
        async with serving() as server:
            return await PeerClient(SECRET, RUN).ping(server.address, 30)

    assert asyncio.run(ping()) == {"iteration": ITERATION}


def test_ping_ends_in_time_though_the_peers_loop_is_stuck() -> None:
    asked = threading.Event()
    free = threading.Event()

    def status() -> dict[str, Any]:
        asked.set()
        free.wait(60)
        return {}

    def run_server(addresses: list[str], started: threading.Event) -> None:
        async def serve() -> None:
            server = PeerServer(
                "127.0.0.1", run=RUN, credentials=SECRET, source=Holder([]), status=status
            )
            addresses.append(await server.start())
            started.set()
            await asyncio.to_thread(asked.wait, 60)
            await asyncio.sleep(0)
            await server.close()

        asyncio.run(serve())

    addresses: list[str] = []
    started = threading.Event()
    thread = threading.Thread(target=run_server, args=(addresses, started))
    thread.start()
    started.wait(60)
    began = time.monotonic()
    with pytest.raises(PeerUnreachableError, match=addresses[0]):
        asyncio.run(PeerClient(SECRET, RUN).ping(addresses[0], 0.3))
    assert 0.25 < time.monotonic() - began < 50
    free.set()
    thread.join()


def test_a_closed_server_has_given_up_its_views(tmp_path: Path) -> None:
    async def fetch() -> None:
        server = serving(source)
        address = await server.start()
        connection = await asyncio.to_thread(ask_for_everything, address)
        await server.close()
        connection.close()
        assert not [t for t in threading.enumerate() if t.name == "castor-peer"]

    with filled(0, 64 << 20, 16 << 20) as source:
        asyncio.run(fetch())
        mapped = source.mapped[1]
    assert mapped.closed


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:0", "host:70000", "host:x"])
def test_what_is_no_address_is_said_so(address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        parse_address(address)


def test_addresses_are_read() -> None:
    assert parse_address("10.0.0.1:80") == ("10.0.0.1", 80)
    assert parse_address("[::1]:65535") == ("::1", 65535)
