"""Pieces over real TCP connections, between ranks that are threads."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from castor_lab.one_process.memory_group import Meeting, MemoryGroup
from castor_runtime.trainer.device import wait_all
from castor_runtime.trainer.stripes import STRIPE_BYTES
from castor_runtime.trainer.tcp_streams import StreamError, TcpStreams

WAIT_S = 60.0
BYTES = 3 * STRIPE_BYTES + 5


def in_ranks(world: int, work: Callable[[int, MemoryGroup], Any]) -> list[Any]:
    """Do `work` in each of so many ranks at once; return what each returns."""
    meeting = Meeting(world)
    found: dict[int, Any] = {}

    def run(rank: int) -> None:
        found[rank] = work(rank, MemoryGroup(meeting, rank, "control"))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert len(found) == world, "a rank failed or hangs"
    return [found[rank] for rank in range(world)]


def ring(world: int, count: int, timeout_s: float = WAIT_S) -> list[TcpStreams]:
    """Return the streams of ranks each of which sends to the next one."""

    def opened(rank: int, control: MemoryGroup) -> TcpStreams:
        to, source = (rank + 1) % world, (rank - 1) % world
        return TcpStreams(control, [to], [source], count, address="127.0.0.1", timeout_s=timeout_s)

    return in_ranks(world, opened)


def some(rank: int, size: int = BYTES) -> torch.Tensor:
    return torch.randint(
        0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(rank)
    )


@pytest.mark.parametrize("count", [1, 4])
def test_pieces_arrive_as_they_were_sent_in_both_directions_at_once(count: int) -> None:
    ranks = ring(3, count)
    works, targets = [], []
    for tag, size in enumerate((BYTES, 1, 0, STRIPE_BYTES)):
        for rank, streams in enumerate(ranks):
            target = torch.zeros(size, dtype=torch.uint8)
            targets.append((target, some((rank - 1) % 3, size)))
            outgoing, incoming = ((rank + 1) % 3, some(rank, size)), ((rank - 1) % 3, target)
            works += streams.post(tag, [outgoing], [incoming])
    wait_all(works)
    assert all(torch.equal(target, expected) for target, expected in targets)
    for streams in ranks:
        streams.close()


@pytest.mark.parametrize(("tag", "size"), [(6, BYTES), (5, BYTES - 1)])
def test_what_was_not_agreed_is_an_error_and_writes_nothing(tag: int, size: int) -> None:
    one, other = ring(2, 1)
    sent = one.post(5, [(1, some(0))], [])
    target = torch.zeros(size, dtype=torch.uint8)
    with pytest.raises(StreamError, match=r"round and bytes \(5, 3145733\) came, where"):
        wait_all(other.post(tag, [], [(0, target)]))
    assert not target.any()
    with pytest.raises(StreamError, match="round and bytes"):  # what follows is of no use
        wait_all(other.post(7, [], [(0, target)]))
    other.close()
    with pytest.raises(StreamError, match="to rank 1"):
        wait_all([*sent, *one.post(8, [(1, torch.zeros(1 << 26, dtype=torch.uint8))], [])])
    one.close()


def test_a_peer_that_is_gone_is_an_error() -> None:
    one, other = ring(2, 2)
    target = torch.zeros(BYTES, dtype=torch.uint8)
    works = one.post(0, [], [(1, target)])
    other.close()
    with pytest.raises(StreamError, match="from rank 1: the connection was closed"):
        wait_all(works)
    one.close()


def test_a_peer_that_is_silent_is_an_error_after_the_time_given() -> None:
    one, other = ring(2, 1, timeout_s=0.5)
    with pytest.raises(StreamError, match=r"from rank 1: nothing moved for 0\.5 s"):
        wait_all(one.post(0, [], [(1, torch.zeros(1, dtype=torch.uint8))]))
    one.close()
    other.close()


def test_ending_wakes_whoever_waits_and_leaves_nothing_to_ask_for() -> None:
    one, other = ring(2, 2, timeout_s=WAIT_S / 2)
    waits = one.post(0, [], [(1, torch.zeros(BYTES, dtype=torch.uint8))])
    # Beyond what the kernel takes: nobody receives.
    waits += one.post(0, [(1, torch.zeros(1 << 26, dtype=torch.uint8))], [])
    one.end()
    for work in waits:
        with pytest.raises(StreamError, match=r"rank 1: (the connection was closed|.*Broken pipe)"):
            work.wait()
    with pytest.raises(StreamError):
        wait_all(one.post(1, [], [(1, torch.zeros(1, dtype=torch.uint8))]))
    # The peer sees it, too: a part of the round had arrived.
    with pytest.raises(StreamError, match="from rank 0"):
        wait_all(other.post(0, [], [(0, torch.zeros(1 << 26, dtype=torch.uint8))]))
    one.close()
    other.close()


def test_whoever_waits_for_a_peer_that_does_not_connect_may_give_up() -> None:
    asked: list[int] = []

    def gives_up() -> bool:
        asked.append(0)
        return len(asked) == 2

    def opened(rank: int, control: MemoryGroup) -> str:
        sources = [1] if rank == 0 else []
        try:
            TcpStreams(
                control,
                [],
                sources,
                1,
                address="127.0.0.1",
                timeout_s=WAIT_S / 2,
                gives_up=gives_up,
            )
        except StreamError as error:
            return str(error)
        return "connected"

    said = in_ranks(2, opened)
    assert said == ["rank 0 has no way for checkpoints: timed out", "connected"]
    assert len(asked) == 2


def test_who_has_no_token_is_not_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.create_connection
    strangers: list[socket.socket] = []

    def after_strangers(address: tuple[str, int], timeout: float) -> socket.socket:
        # Each says who is waited for, and has no token; or is gone again.
        for said in (*(bytes(16) + struct.pack("!II", rank, 0) for rank in (0, 1)), b""):
            stranger = real(address, timeout=timeout)
            stranger.sendall(said)
            stranger.shutdown(socket.SHUT_WR)
            strangers.append(stranger)
        return real(address, timeout=timeout)

    monkeypatch.setattr(socket, "create_connection", after_strangers)
    one, other = ring(2, 2)
    target = torch.zeros(BYTES, dtype=torch.uint8)
    wait_all([*one.post(0, [(1, some(0))], []), *other.post(0, [], [(0, target)])])
    assert torch.equal(target, some(0))
    assert len(strangers) == 12
    for stranger in strangers:
        assert stranger.recv(1) == b"", "it was turned away"
        stranger.close()
    one.close()
    other.close()
