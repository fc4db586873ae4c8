"""Fair turns of a server's sends, and the seals of frames."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_runtime.transport.errors import BrokenFrameError
from castor_runtime.transport.turns import SendTurns
from castor_runtime.transport.wire import Challenge, Frame, Kind, Seal


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_no_more_than_the_limit_send_and_each_fetch_gets_its_share(limit: int) -> None:
    turns = SendTurns(limit)
    order: list[str] = []
    sending = [0]
    most = [0]
    lock = threading.Lock()
    # All wait behind these turns, so that the order is the rule's and not the threads'.
    for _ in range(limit):
        assert turns.take("before", 1)

    def send(fetch: str, chunks: int) -> None:
        for _ in range(chunks):
            assert turns.take(fetch, 10)
            with lock:
                order.append(fetch)
                sending[0] += 1
                most[0] = max(most[0], sending[0])
            with lock:
                sending[0] -= 1
            turns.give_back(fetch)

    threads = [threading.Thread(target=send, args=("many", 50)) for _ in range(6)]
    threads += [threading.Thread(target=send, args=("one", 1)) for _ in range(30)]
    for thread in threads:
        thread.start()
    while len(turns._waiting) < len(threads):
        threading.Event().wait(0.001)
    for _ in range(limit):
        turns.give_back("before")
    for thread in threads:
        thread.join()
    assert most[0] <= limit
    assert Counter(order) == {"many": 300, "one": 30}
    # The fetch with thirty waiting sends had every other turn until it had nothing left.
    assert order[: 2 * 30 + 2 * limit].count("one") == 30


def test_a_fetch_that_comes_late_goes_first() -> None:
    turns = SendTurns(1)
    assert turns.take("old", 1)
    order: list[str] = []

    def send(fetch: str) -> None:
        assert turns.take(fetch, 10)
        order.append(fetch)
        turns.give_back(fetch)

    threads = []
    for fetch in ("old", "old", "new"):
        threads.append(threading.Thread(target=send, args=(fetch,)))
        threads[-1].start()
        while len(turns._waiting) < len(threads):
            threading.Event().wait(0.001)
    turns.give_back("old")
    for thread in threads:
        thread.join()
    assert order == ["new", "old", "old"]


def test_a_turn_that_does_not_come_in_time_is_not_taken() -> None:
    turns = SendTurns(1)
    assert turns.take("a", 1)
    assert not turns.take("b", 0.01)
    turns.give_back("a")
    assert turns.take("b", 1)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        SendTurns(limit)


frames = st.builds(
    Frame,
    st.sampled_from(Kind),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
)


@given(sent=st.lists(frames, max_size=5), key=st.binary(min_size=32, max_size=32))
def test_sealed_frames_are_read_back_in_order(sent: list[Frame], key: bytes) -> None:
    outgoing, incoming = Seal(key), Seal(key)
    assert [incoming.unpack(outgoing.pack(frame)) for frame in sent] == sent


@given(frame=frames, bit=st.integers(0, 40 * 8 - 1))
def test_any_bit_of_a_header_that_is_changed_is_noticed(frame: Frame, bit: int) -> None:
    key = bytes(32)
    sealed = bytearray(Seal(key).pack(frame))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BrokenFrameError):
        Seal(key).unpack(bytes(sealed))


@given(frame=frames, body=st.binary(max_size=50))
def test_frames_that_are_repeated_dropped_or_swapped_are_noticed(frame: Frame, body: bytes) -> None:
    key = bytes(32)
    outgoing = Seal(key)
    first, first_body = outgoing.pack(frame), outgoing.of_body(body)
    second = outgoing.pack(frame)
    incoming = Seal(key)
    incoming.unpack(first)
    incoming.check_body(body, first_body)
    with pytest.raises(BrokenFrameError):
        incoming.unpack(first)
    with pytest.raises(BrokenFrameError):
        Seal(key).unpack(second)
    later = Seal(key)
    later.unpack(first)
    later.unpack(second)
    with pytest.raises(BrokenFrameError):
        later.check_body(body, first_body)


def test_keys_differ_by_direction_role_nonce_run_and_secret() -> None:
    frame = Frame(Kind.PING)
    said = set()
    for secret in (b"a" * 16, b"b" * 16):
        for nonces in ((b"c" * 32, b"d" * 32), (b"d" * 32, b"c" * 32)):
            for runs in ((b"e" * 8, b"e" * 8), (b"e" * 8, b"f" * 8)):
                challenge = Challenge(secret, *nonces, *runs)
                said |= {
                    challenge.client_proof(),
                    challenge.server_proof(),
                    challenge.client_seal().pack(frame),
                    challenge.server_seal().pack(frame),
                }
    assert len(said) == 32
