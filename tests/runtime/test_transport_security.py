"""Who is let in, and what a hostile or broken peer can do: nothing, and not for long."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from castor_lab.server_thread import in_a_thread
from castor_runtime.authority import Authority
from castor_runtime.transport import (
    JobSecret,
    MutualTls,
    PartMissingError,
    PeerClient,
    PeerError,
    PeerRefusedError,
    PeerServer,
    PeerUnreachableError,
    ServerLimits,
    Timeouts,
)
from castor_runtime.transport.admission import GRACE_S, Admission
from castor_runtime.transport.channel import Channel, greet_client, greet_server
from castor_runtime.transport.dialler import connected, parse_address
from castor_runtime.transport.wire import MAGIC, Challenge, Frame, Kind, Seal

pytestmark = pytest.mark.long  # all of it starts real processes, many times

RUN = "0123456789abcdef"
OWN = bytes.fromhex(RUN)
SECRET = JobSecret(b"a secret of this job")
FINGERPRINT = bytes(16)


@dataclass(frozen=True)
class Part:
    iteration: int = 1
    data: memoryview = field(default_factory=lambda: memoryview(b"abcdefgh"))
    meta: bytes = b"m"
    digests: tuple[int, ...] = (0x6F45A76842A96483,)
    chunk_bytes: int = 8
    fingerprint: bytes = FINGERPRINT


class Buffer:
    def __init__(self, size: int = 8) -> None:
        self.data = memoryview(bytearray(size))
        self.chunk_bytes = 8
        self.meta_bytes = 100
        self.committed: tuple[bytes, list[int]] | None = None

    def make_room(self, meta_bytes: int) -> None:
        assert meta_bytes <= self.meta_bytes

    def commit(self, meta: bytes, digests: Any) -> None:
        self.committed = meta, list(digests)


@dataclass(frozen=True)
class Source:
    part: Part = field(default_factory=Part)

    def open(self, rank: int, iteration: int) -> Part:
        if (rank, iteration) != (0, 1):
            raise PartMissingError(f"no part of rank {rank}, iteration {iteration}")
        return self.part


@contextmanager
def server(**options: Any) -> Iterator[str]:
    """Run a server in a thread of its own; yield its address."""
    options.setdefault("credentials", SECRET)
    options = {"run": RUN, "source": Source(), "status": lambda: {"fine": True}} | options
    with in_a_thread(lambda: PeerServer("127.0.0.1", **options)) as serving:
        yield serving.address


@contextmanager
def impostor(act: Callable[[socket.socket], None]) -> Iterator[str]:
    """Run `act` on every connection to a port; yield its address."""

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError, PeerError):
                    connection.settimeout(30)
                    act(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def ping(address: str, credentials: Any = SECRET, timeout_s: float = 30.0) -> dict[str, Any]:
    return asyncio.run(PeerClient(credentials, RUN).ping(address, timeout_s))


def fetch(address: str, credentials: Any = SECRET) -> Buffer:
    buffer = Buffer()
    client = PeerClient(credentials, RUN)
    asyncio.run(client.fetch([address], 0, 1, FINGERPRINT, buffer))
    return buffer


def read_to_end(connection: socket.socket) -> bytes:
    connection.settimeout(30)
    received = b""
    with contextlib.suppress(ConnectionError):
        while block := connection.recv(1 << 16):
            received += block
    return received


def test_the_right_secret_is_let_in() -> None:
    with server() as address:
        assert ping(address) == {"fine": True}
        buffer = fetch(address)
    assert (bytes(buffer.data), buffer.committed) == (b"abcdefgh", (b"m", [0x6F45A76842A96483]))


def test_a_client_refuses_a_server_with_another_secret() -> None:
    other = JobSecret(b"a secret of that job")
    with server() as address:
        for call in (ping, fetch):
            with pytest.raises(PeerRefusedError, match=f"{address}.*secret"):
                call(address, other)


def test_a_server_refuses_a_client_with_another_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with server() as address, connected(parse_address(address), 30) as connection:
        nonce = bytes(32)
        connection.sendall(MAGIC + nonce + OWN)
        answer = connection.recv(88, socket.MSG_WAITALL)
        challenge = Challenge(b"a secret of that job", nonce, answer[16:48], OWN, OWN)
        seal = challenge.client_seal()
        asked = seal.pack(Frame(Kind.PING)) + seal.of_body(b"")
        connection.sendall(challenge.client_proof() + asked)
        assert read_to_end(connection) == b""
    assert "does not know this job's secret" in caplog.text


def test_peers_of_two_runs_of_one_name_refuse_each_other_by_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The secret may be one: `--secret FILE` names the same file for every run."""
    other = "fedcba9876543210"
    with server() as address:
        stranger = PeerClient(SECRET, other)
        calls = (
            stranger.ping(address, 10.0),
            stranger.fetch([address], 0, 1, FINGERPRINT, buffer := Buffer()),
        )
        for call in calls:
            with pytest.raises(PeerRefusedError, match=rf"run {RUN} of this job, .* run {other}"):
                asyncio.run(call)
        assert buffer.committed is None
        assert ping(address) == {"fine": True}
    assert f"it belongs to run {other} of this job, this agent to run {RUN}" in caplog.text


def test_a_run_that_was_changed_on_the_way_is_refused() -> None:
    """Whoever stands between two runs cannot make one of them."""

    def lie(client: socket.socket) -> None:
        hello = client.recv(56, socket.MSG_WAITALL)
        with connected(parse_address(address), 30) as upstream:
            upstream.sendall(hello[:48] + OWN)
            client.sendall(upstream.recv(88, socket.MSG_WAITALL))
            client.recv(1)

    with server() as address, impostor(lie) as through:
        stranger = PeerClient(SECRET, "fedcba9876543210")
        with pytest.raises(PeerRefusedError, match="secret"):
            asyncio.run(stranger.ping(through, 10.0))


def test_a_server_refuses_its_own_proof_sent_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with server() as address, connected(parse_address(address), 30) as connection:
        connection.sendall(MAGIC + bytes(32) + OWN)
        answer = connection.recv(88, socket.MSG_WAITALL)
        connection.sendall(answer[56:])
        assert read_to_end(connection) == b""
    assert "does not know this job's secret" in caplog.text


def test_a_recorded_session_is_refused_when_it_is_played_again() -> None:
    recorded = bytearray()

    def relay(client: socket.socket) -> None:
        with connected(parse_address(address), 30) as upstream:

            def back() -> None:
                with contextlib.suppress(OSError):
                    while block := upstream.recv(1 << 16):
                        client.sendall(block)

            thread = threading.Thread(target=back)
            thread.start()
            while block := client.recv(1 << 16):
                recorded.extend(block)
                upstream.sendall(block)
            upstream.shutdown(socket.SHUT_RDWR)
            thread.join()

    with server() as address:
        with impostor(relay) as through:
            assert ping(through) == {"fine": True}
        assert len(recorded) == 16 + 32 + 8 + 32 + 40 + 16
        with connected(parse_address(address), 30) as connection:
            connection.sendall(recorded)
            # Magic, a fresh nonce and a proof that fits it; no status.
            assert len(read_to_end(connection)) == 88


def test_a_frame_of_another_session_or_one_that_is_repeated_is_refused() -> None:
    def greeted(connection: socket.socket) -> tuple[Channel, Seal]:
        channel = greet_server(connection, SECRET, RUN, 30)
        return channel, channel._outgoing

    with server() as address:
        where = parse_address(address)
        with connected(where, 30) as first, connected(where, 30) as second:
            channel, seal = greeted(first)
            frame = seal.pack(Frame(Kind.PING)) + seal.of_body(b"")
            greeted(second)
            second.sendall(frame)
            assert read_to_end(second) == b""
            first.sendall(frame)
            assert channel.receive_json(channel.receive(timeout_s=30), timeout_s=30)
            first.sendall(frame)
            assert read_to_end(first) == b""


@settings(max_examples=40)
@given(st.binary(max_size=200))
@example(MAGIC)
@example(MAGIC + bytes(40))
@example(MAGIC + bytes(72))
@example(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
@example(b"\x16\x03\x01" + bytes(200))
def test_garbage_to_the_port_learns_nothing(garbage_server: str, garbage: bytes) -> None:
    with connected(parse_address(garbage_server), 30) as connection:
        connection.sendall(garbage)
        connection.shutdown(socket.SHUT_WR)
        answer = read_to_end(connection)
    assert len(answer) == (88 if garbage.startswith(MAGIC) and len(garbage) >= 56 else 0)


@pytest.fixture(scope="module")
def garbage_server() -> Iterator[str]:
    with server() as address:
        yield address
        assert ping(address) == {"fine": True}, "it still serves"


def test_those_who_connect_and_say_nothing_are_cut_off_and_shut_nobody_out() -> None:
    timeouts = Timeouts(handshake_s=4.0)
    with server(limits=ServerLimits(strangers=3), timeouts=timeouts) as address:
        where = parse_address(address)
        with contextlib.ExitStack() as stack:
            idle = [stack.enter_context(connected(where, 30)) for _ in range(3)]
            assert select.select(idle, [], [], 0.1)[0] == [], "these have their time"
            assert ping(address) == {"fine": True}
            assert read_to_end(idle[0]) == b"", "the one that had most of it is given up"
            assert select.select(idle[1:], [], [], 0)[0] == []
            for connection in idle[1:]:
                assert read_to_end(connection) == b""


def test_a_crowd_of_silent_strangers_that_comes_back_shuts_no_peer_out() -> None:
    with server(limits=ServerLimits(connections=2, strangers=16)) as address:
        where = parse_address(address)
        with contextlib.ExitStack() as stack:
            for _ in range(5):
                for _ in range(40):
                    stack.enter_context(connected(where, 30))
                assert ping(address) == {"fine": True}


def test_peers_beyond_the_limit_are_turned_away_and_those_inside_stay() -> None:
    with (
        server(limits=ServerLimits(connections=1)) as address,
        connected(parse_address(address), 30) as inside,
    ):
        channel = greet_server(inside, SECRET, RUN, 30)
        channel.send(Kind.PING, timeout_s=30)
        channel.receive_json(channel.receive(timeout_s=30), timeout_s=30)
        with pytest.raises(PeerUnreachableError):
            ping(address)
        channel.send(Kind.PING, timeout_s=30)
        assert channel.receive_json(channel.receive(timeout_s=30), timeout_s=30)["fine"]


def test_room_for_strangers_is_made_where_most_of_them_are() -> None:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(6)]
        threads = [threading.Thread() for _ in sockets]
        admission = Admission(peers=1, strangers=3)
        for at, address in enumerate(["a", "b", "b"]):
            assert admission.enter(threads[at], sockets[at], address, at) is None
        assert admission.prove(threads[0])
        assert admission.wait_s(2.0) == 0
        assert admission.enter(threads[3], sockets[3], "c", 2.0) is None, "the proven count apart"
        assert admission.wait_s(1.0) == pytest.approx(GRACE_S), "each has its time"
        assert admission.wait_s(9.0) == 0
        assert admission.enter(threads[4], sockets[4], "c", 9.0) is sockets[1]
        assert not admission.replace(threads[1], sockets[1])
        assert not admission.prove(threads[1]), "it was given up while it proved itself"
        assert not admission.prove(threads[2]), "there is one proven peer already"
        admission.leave(threads[0])
        assert admission.prove(threads[2])
        admission.leave(threads[1])
        assert set(admission.connections()) == {threads[2], threads[3], threads[4]}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (Kind.GET, b"\0\0\0\1"),
        (Kind.GET_META, b""),
        (Kind.OPEN, b"no json"),
        (Kind.OPEN, b"[]"),
        (Kind.OPEN, b'{"rank": "x"}'),
        (Kind.STATUS, b""),
    ],
)
def test_a_peer_that_asks_nonsense_is_cut_off(kind: Kind, body: bytes) -> None:
    with server() as address, connected(parse_address(address), 30) as connection:
        channel = greet_server(connection, SECRET, RUN, 30)
        channel.send(kind, body, timeout_s=30)
        assert read_to_end(connection) == b""


def test_chunks_beyond_the_end_are_not_served() -> None:
    with server() as address, connected(parse_address(address), 30) as connection:
        channel = greet_server(connection, SECRET, RUN, 30)
        opening = {"fetch": "f", "rank": 0, "iteration": 1, "fingerprint": FINGERPRINT.hex()}
        channel.send_json(Kind.OPEN, opening, timeout_s=30)
        channel.receive_json(channel.receive(timeout_s=30), timeout_s=30)
        channel.send(Kind.GET, b"\xff\xff\xff\xff", index=0, timeout_s=30)
        assert read_to_end(connection) == b""


@pytest.mark.parametrize("said", [b"", b"x", b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(5000)])
def test_a_client_is_not_taken_in_by_garbage(said: bytes) -> None:
    def act(connection: socket.socket) -> None:
        connection.sendall(said)
        connection.recv(100)

    with impostor(act) as address:
        kind = PeerRefusedError if len(said) > 16 else PeerUnreachableError
        for call in (ping, fetch):
            with pytest.raises(kind, match=address):
                call(address)


def test_a_frame_that_claims_to_be_huge_takes_no_memory() -> None:
    def act(connection: socket.socket) -> None:
        channel = greet_client(connection, SECRET, RUN, 30)
        channel.receive_body(channel.receive(timeout_s=30), timeout_s=30)
        for kind in (Kind.STATUS, Kind.PART):
            connection.sendall(channel._outgoing.pack(Frame(kind, 0, 1 << 40)))
            connection.recv(1)

    tracemalloc.start()
    try:
        with impostor(act) as address:
            for call in (ping, fetch):
                with pytest.raises(PeerUnreachableError, match=r"1099511627776|came where"):
                    call(address)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_a_chunk_of_another_size_is_not_received() -> None:
    def act(connection: socket.socket) -> None:
        channel = greet_client(connection, SECRET, RUN, 30)
        channel.receive_json(channel.receive(timeout_s=30), timeout_s=30)
        opened = {
            "data_bytes": 8,
            "chunk_bytes": 8,
            "meta_bytes": 1,
            "identity": "i",
            "fingerprint": FINGERPRINT.hex(),
        }
        channel.send_json(Kind.PART, opened, timeout_s=30)
        while True:
            asked = channel.receive(timeout_s=30)
            channel.receive_body(asked, timeout_s=30)
            if asked.kind is Kind.GET_META:
                channel.send(Kind.META, b"m", timeout_s=30)
            else:
                longer = channel._outgoing.pack(Frame(Kind.CHUNK, 0, 9)) + b"123456789"
                connection.sendall(longer)

    with (
        impostor(act) as address,
        pytest.raises(PeerUnreachableError, match="chunk 0 of 9 bytes came"),
    ):
        fetch(address)


def test_a_peer_that_drips_is_given_up() -> None:
    def act(connection: socket.socket) -> None:
        for byte in MAGIC + bytes(72):
            connection.sendall(bytes([byte]))
            time.sleep(0.5)

    with impostor(act) as address:
        began = time.monotonic()
        with pytest.raises(PeerUnreachableError, match=r"timed out|silent|no answer"):
            ping(address, timeout_s=0.4)
        assert time.monotonic() - began < 30


def test_the_server_is_bound_to_its_address_only() -> None:
    with server() as address:
        _, port = parse_address(address)
        with pytest.raises(ConnectionRefusedError):
            connected(("127.0.0.2", port), 2)
    with pytest.raises(ValueError, match="name the address"):
        PeerServer("", run=RUN, credentials=SECRET, source=Source(), status=dict)


def test_a_secret_is_long_and_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 16"):
        JobSecret(b"short")
    assert "secret of" not in repr(SECRET)
    made = JobSecret.new()
    assert made != JobSecret.new()
    file = tmp_path / "secret"
    file.write_bytes(made.secret)
    assert JobSecret.read(file) == made


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, `ours` and `theirs`, and an agent's certificate of each."""
    folder = tmp_path_factory.mktemp("certificates")
    for ca in ("ours", "theirs"):
        authority = Authority.new(ca, days=2)
        authority.own().write(folder / f"{ca}.pem", folder / f"{ca}.key")
        agent = authority.issue(f"agent-{ca}", "127.0.0.1", days=2)
        agent.write(folder / f"agent-{ca}.pem", folder / f"agent-{ca}.key")
    return folder


def tls(folder: Path, ca: str = "ours", agent: str = "ours") -> MutualTls:
    return MutualTls(
        folder / f"{ca}.pem", folder / f"agent-{agent}.pem", folder / f"agent-{agent}.key"
    )


def test_certificates_of_one_authority_let_in(certificates: Path) -> None:
    credentials = tls(certificates)
    with server(credentials=credentials) as address:
        assert ping(address, credentials) == {"fine": True}
        assert bytes(fetch(address, credentials).data) == b"abcdefgh"


@pytest.mark.parametrize(
    ("client", "named"),
    [
        # The client trusts the server, but the server does not trust the client.
        (("ours", "theirs"), "TLS: .*unknown ca"),
        # The client does not trust the server.
        (("theirs", "ours"), "TLS: .*certificate verify failed"),
    ],
)
def test_certificates_of_another_authority_do_not(
    certificates: Path, client: tuple[str, str], named: str
) -> None:
    with server(credentials=tls(certificates)) as address:
        for call in (ping, fetch):
            with pytest.raises(PeerRefusedError, match=named):
                call(address, tls(certificates, *client))


def test_a_client_without_a_certificate_is_refused(certificates: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(certificates / "ours.pem")
    with (
        server(credentials=tls(certificates)) as address,
        connected(parse_address(address), 30) as plain,
        context.wrap_socket(plain) as connection,
    ):
        connection.sendall(MAGIC + bytes(32) + OWN)
        with pytest.raises(ssl.SSLError, match=r"certificate required|handshake failure"):
            connection.recv(100)


def test_one_with_a_secret_and_one_with_certificates_do_not_mix(certificates: Path) -> None:
    with server(credentials=tls(certificates)) as address:
        for call in (ping, fetch):
            with pytest.raises(PeerError, match=address):
                call(address, SECRET)
        assert ping(address, tls(certificates)) == {"fine": True}
    with server() as address:
        for call in (ping, fetch):
            with pytest.raises(PeerError, match=address):
                call(address, tls(certificates))
        assert ping(address) == {"fine": True}


def test_a_large_part_travels_under_tls(certificates: Path) -> None:
    data = bytes(range(256)) * 40_000
    digests = tuple(
        xxhash.xxh3_64_intdigest(data[start : start + 1_000_000])
        for start in range(0, len(data), 1_000_000)
    )
    part = Part(data=memoryview(data), digests=digests, chunk_bytes=1_000_000)

    async def carry() -> bytes:
        credentials = tls(certificates)
        buffer = Buffer(len(data))
        buffer.chunk_bytes = 1_000_000
        made = PeerServer(
            "127.0.0.1", run=RUN, credentials=credentials, source=Source(part), status=dict
        )
        async with made:
            client = PeerClient(credentials, RUN)
            await client.fetch([made.address], 0, 1, FINGERPRINT, buffer)
        return bytes(buffer.data)

    assert asyncio.run(carry()) == data
