"""What an agent tells its peers beside parts: logs, account and clock; never in the parts' way."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from castor_lab.server_thread import in_a_thread
from castor_runtime.agent.own_account import served_files
from castor_runtime.transport import (
    JobSecret,
    PartMissingError,
    PeerClient,
    PeerReader,
    PeerRefusedError,
    PeerServer,
    PeerUnreachableError,
    Timeouts,
    Told,
    telling,
)
from castor_runtime.transport.turns import SendTurns

RUN = "0123456789abcdef"
SECRET = JobSecret(b"a secret of this job")
QUICK = Timeouts(connect_s=30, handshake_s=30, silence_s=60, idle_s=0.3, patience_s=30)


class Nothing:
    def open(self, rank: int, iteration: int) -> Any:
        raise PartMissingError(f"no part of rank {rank}, iteration {iteration}")


@contextmanager
def server(folder: Path, ahead_ns: int = 0, busy_s: float = 0.0) -> Iterator[PeerServer]:
    """Run a server in a thread of its own, on a host whose clock is ahead and that is busy."""

    def status() -> dict[str, Any]:
        time.sleep(busy_s)
        return {"fine": True}

    told = Told(
        str(folder),
        lambda: served_files(folder),
        lambda: "what happened",
        lambda: time.time_ns() + ahead_ns,
    )
    options = {"credentials": SECRET, "run": RUN, "source": Nothing(), "timeouts": QUICK}
    with in_a_thread(
        lambda: PeerServer("127.0.0.1", status=status, told=told, **options)
    ) as serving:
        yield serving


@contextmanager
def reader(of: PeerServer, secret: JobSecret = SECRET) -> Iterator[PeerReader]:
    made = PeerReader(of.address, secret, RUN, QUICK)
    try:
        yield made
    finally:
        made.close()


def test_logs_are_read_in_pieces_and_followed(tmp_path: Path) -> None:
    text = bytes(range(256)) * 2000
    (tmp_path / "rank-3.log").write_bytes(text)
    (tmp_path / "events.jsonl").write_bytes(b"{}\n")
    (tmp_path / "secret").write_bytes(b"not for others")
    with server(tmp_path) as one, reader(one) as peer:
        listing = peer.listing()
        assert listing.files == {"events.jsonl": 3, "rank-3.log": len(text)}
        assert listing.folder == str(tmp_path)
        assert listing.host
        found = b""
        while (piece := peer.read("rank-3.log", len(found)))[1]:
            assert piece[0] == len(text)
            assert len(piece[1]) <= telling.PIECE_BYTES
            found += piece[1]
        assert found == text
        with (tmp_path / "rank-3.log").open("ab") as file:
            file.write(b"more")
        assert peer.read("rank-3.log", len(text)) == (len(text) + 4, b"more")
        assert peer.account() == "what happened"


@pytest.mark.parametrize(
    "name",
    ["secret", "../secret", "/etc/passwd", "", ".", "rank-3.log/../secret", "rank-9.log", "x\0y"],
)
def test_no_path_from_outside_is_opened(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "agent"
    folder.mkdir()
    for path in (tmp_path / "secret", folder / "secret", folder / "rank-3.log"):
        path.write_text("secret")
    (folder / "rank-9.log").symlink_to(tmp_path / "secret")
    with server(folder) as one, reader(one) as peer:
        with pytest.raises(PartMissingError, match=r"has no log|cannot be read"):
            peer.read(name, 0)
        assert peer.read("rank-3.log", 0)[1] == b"secret"  # the connection is still of use


def test_who_does_not_know_the_secret_reads_nothing(tmp_path: Path) -> None:
    with server(tmp_path) as one, reader(one, JobSecret(b"another secret!!")) as peer:
        for ask in (peer.listing, peer.account, peer.clock, lambda: peer.read("agent.log", 0)):
            with pytest.raises(PeerRefusedError, match=one.address):
                ask()


def test_a_reader_that_was_cut_off_asks_again_over_a_new_connection(tmp_path: Path) -> None:
    (tmp_path / "agent.log").write_text("one\n")
    with server(tmp_path) as one, reader(one) as peer:
        assert peer.read("agent.log", 0)[1] == b"one\n"
        time.sleep(2 * QUICK.idle_s)  # the server has closed it
        assert peer.read("agent.log", 0)[1] == b"one\n"
    with pytest.raises(PeerUnreachableError, match="127"):
        peer.listing()


def test_clocks_that_are_apart_are_found_to_be(tmp_path: Path) -> None:
    ahead_ns = 5_000_000_000
    with server(tmp_path, ahead_ns, busy_s=0.1) as one:
        with reader(one) as peer:
            found = peer.clock()
        # That it takes a while to answer makes it no less certain.
        assert abs(found.offset_ns - ahead_ns) <= found.uncertainty_ns < 40_000_000
        client = PeerClient(SECRET, RUN)
        same = asyncio.run(client.clock(one.address, 2.0, lambda: time.time_ns() + ahead_ns))
        assert abs(same.offset_ns) <= same.uncertainty_ns
        assert asyncio.run(client.ping(one.address, 2.0)) == {"fine": True}


def test_only_so_many_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "CONNECTIONS", 1)
    with server(tmp_path) as one, reader(one) as first, reader(one) as second:
        first.listing()
        with pytest.raises(PeerRefusedError, match="1 read its logs already"):
            second.listing()
        first.close()
        patience_s = time.monotonic() + 5
        while time.monotonic() < patience_s:
            try:
                second.listing()
                break
            except PeerRefusedError:
                time.sleep(0.01)
        second.listing()


def test_parts_come_first(tmp_path: Path) -> None:
    """While parts are sent nothing is told; a reader has it as soon as they are through."""
    (tmp_path / "agent.log").write_text("said")
    with server(tmp_path) as one, reader(one) as peer:
        peer.listing()
        assert one.turns.take("a fetch", 1)
        told: list[float] = []

        def ask() -> None:
            peer.read("agent.log", 0)
            told.append(time.monotonic())

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.2)
        assert told == []
        through_s = time.monotonic()
        one.turns.give_back("a fetch")
        asking.join(60)
        assert told[0] >= through_s


def test_a_reader_that_takes_nothing_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers fill the sockets' buffers, then its turn goes to the next reader."""
    monkeypatch.setattr(telling, "PIECE_BYTES", 8 << 20)
    (tmp_path / "rank-0.log").write_bytes(bytes(8 << 20))
    (tmp_path / "agent.log").write_text("said")
    with server(tmp_path) as one, reader(one) as slow, reader(one) as other:
        slow.listing()
        channel = slow._channel
        assert channel is not None
        # It asks, and does not read the answer.
        channel.send_json(telling.Kind.READ, {"file": "rank-0.log", "offset": 0}, timeout_s=30)
        time.sleep(0.05)
        began_s = time.monotonic()
        assert other.read("agent.log", 0)[1] == b"said"
        assert time.monotonic() - began_s < 30
        # Parts need no turn of the readers'.
        assert one.turns.take("a fetch", 0.1)
        one.turns.give_back("a fetch")


def test_waiting_until_nobody_sends() -> None:
    turns = SendTurns(1)
    assert turns.wait_idle(0)
    assert turns.take("one", 1)
    assert not turns.wait_idle(0.01)
    turns.give_back("one")
    assert turns.wait_idle(0)
