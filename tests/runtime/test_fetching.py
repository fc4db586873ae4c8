"""What the streams of a fetch share, driven by whatever holders may do, in any order."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from castor_runtime.transport.errors import CorruptPartError, PeerUnreachableError
from castor_runtime.transport.fetching import Fetching, PartRequest, Share

CHUNK = 1 << 20

DEEDS = st.tuples(
    st.sampled_from(["bring", "bring", "bring", "damage", "lose", "give up", "fail"]),
    st.integers(0, 11),
)


def digest(index: int) -> int:
    return 1000 + index


class Model:
    """The streams' threads, one step at a time."""

    def __init__(self, chunks: int, holders: int, streams: int) -> None:
        request = PartRequest("f", 0, 7, "00", chunks * CHUNK, CHUNK)
        self.fetching = Fetching(request, {f"h{n}:1": streams for n in range(holders)})
        self.shares = [
            self.fetching.join(f"h{number}:1", lambda: None)
            for number in range(holders)
            for _ in range(streams)
        ]
        self.brought: list[int] = []

    def step(self, deed: str, share: Share) -> None:
        if self.fetching.is_over_for(share):
            self.lose(share)
            return
        while len(share.under_way) < 2:
            # Where nothing is left it would wait for others, and there is no other thread here.
            wait = not share.under_way and bool(self.fetching._pending)
            if self.fetching.take(share, wait=wait) is None:
                break
        match deed:
            case "give up":
                self.lose(share)
                self.fetching.give_up_stream(share, "it is gone")
            case "fail":
                self.fetching.fail(share, PeerUnreachableError("refused"))
                self.lose(share)
            case "lose":
                self.lose(share)
            case _ if not share.under_way:
                pass
            case _ if share.under_way[0].is_meta:
                self.fetching.arrived_meta(share, b"meta")
            case "damage":
                self.fetching.corrupt(share)
            case _:
                index = share.under_way[0].first
                self.brought.append(index)
                self.fetching.arrived(share, digest(index))

    def lose(self, share: Share) -> None:
        self.fetching.give_back(share)


@settings(max_examples=3 * settings.default.max_examples)
@given(
    chunks=st.integers(1, 40),
    holders=st.integers(1, 3),
    streams=st.integers(1, 3),
    deeds=st.lists(DEEDS, max_size=60),
)
def test_whatever_holders_do_each_chunk_comes_once_or_the_fetch_fails(
    chunks: int, holders: int, streams: int, deeds: list[tuple[str, int]]
) -> None:
    model = Model(chunks, holders, streams)
    fetching, shares = model.fetching, model.shares
    # What they do, and then all bring what they can.
    ends = [("bring", number) for _ in range(2 * chunks + 4) for number in range(len(shares))]
    for deed, number in [*deeds, *ends]:
        model.step(deed, shares[number % len(shares)])
        under_way = [
            chunk
            for share in shares
            for wanted in share.under_way
            for chunk in range(wanted.first, wanted.first + wanted.count)
        ]
        assert len(under_way) + len(model.brought) == len({*under_way, *model.brought})
    assert fetching.is_over
    alive = {share.holder.address for share in shares if share.holder.failure is None}
    if fetching.failure is None:
        assert sorted(model.brought) == list(range(chunks))
        assert fetching.digests == [digest(index) for index in range(chunks)]
        assert fetching.meta == b"meta"
        assert sum(fetching.chunks_from.values()) == chunks
    else:
        assert not alive


def test_the_second_damaged_copy_of_a_chunk_ends_its_holder_only() -> None:
    model = Model(4, 2, 1)
    one, other = model.shares
    for share in (one, other):
        model.step("bring", share)  # the metadata, and nothing of one yet
    while one.holder.failure is None:
        model.step("damage", one)
    assert isinstance(one.holder.failure, CorruptPartError)
    assert not model.fetching.is_over
    model.lose(one)
    while not model.fetching.is_over:
        model.step("bring", other)
    assert model.fetching.failure is None
    assert model.fetching.chunks_from == {"h1:1": 4}


def test_a_fast_stream_leaves_a_first_range_to_a_slow_one() -> None:
    model = Model(2, 2, 1)
    fast, slow = model.shares
    model.step("bring", fast)
    model.step("bring", fast)
    assert len(fast.under_way) <= 1
    model.step("lose", slow)
    assert model.fetching._pending
