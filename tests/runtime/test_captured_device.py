"""What is sent from the own replica while a copy engine fills it: order, failures, stripes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from castor_runtime.state.sections import lay_out, part_bytes
from castor_runtime.trainer.captured_device import CapturedDevice
from castor_runtime.trainer.copy_engine import Span
from castor_runtime.trainer.device import Send
from castor_runtime.trainer.staging import Copy
from castor_runtime.trainer.stripes import STRIPE_BYTES, streams_each, striped

SECTIONS = lay_out([("a", torch.uint8, [100]), ("b", torch.float32, [50])])
LIVE = [torch.arange(100, dtype=torch.uint8), torch.arange(50, dtype=torch.float32)]
WAIT_S = 60.0


class Held:
    """A copy engine each of whose copies has to be let go."""

    def __init__(self) -> None:
        self.may = threading.Semaphore(0)
        self.error: Exception | None = None

    def pin(self, memory: torch.Tensor) -> None: ...

    def unpin(self) -> None: ...

    def enter_thread(self) -> None: ...

    def note_update(self) -> None: ...

    def moment(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def preparing(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def aside(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def begin(self, copies: Sequence[Copy]) -> Callable[[], Span]:
        return partial(self.copy, copies)

    def copy(self, copies: Sequence[Copy]) -> Span:
        assert self.may.acquire(timeout=WAIT_S)
        if self.error is not None:
            raise self.error
        for source, target in copies:
            target.zero_() if source is None else target.copy_(source)
        return 1, 2


class Sent:
    """In place of a network: keeps what was posted, as it was then."""

    def __init__(self) -> None:
        self.posted: list[tuple[int, bytes]] = []

    def post(self, tag: int, outgoing: Any, _incoming: Any) -> list[Any]:
        self.posted += [(tag, piece.numpy().tobytes()) for _, piece in outgoing]
        return []


@pytest.fixture
def sent() -> Sent:
    return Sent()


def started(
    engine: Held, sent: Sent, free: Callable[[], None]
) -> tuple[CapturedDevice, torch.Tensor]:
    device = CapturedDevice(engine, sent.post, 128)
    own = torch.full((part_bytes(SECTIONS),), 255, dtype=torch.uint8)
    device.capture(SECTIONS, LIVE, own, free)
    return device, own


def test_a_round_is_posted_once_its_bytes_are_captured(sent: Sent) -> None:
    engine, freed = Held(), threading.Event()
    device, own = started(engine, sent, freed.set)
    posting = threading.Thread(
        target=lambda: device.post(7, [Send(1, 100, 200)], [], lambda *_: None, [])
    )
    posting.start()
    engine.may.release()
    device.wait_until(lambda: device.captured_bytes() == 128)
    assert not sent.posted, "byte 128 is not there yet"
    assert not freed.is_set()
    engine.may.release(2)
    posting.join(WAIT_S)
    assert device.wait_captured() == 2
    assert freed.is_set()
    assert sent.posted == [(7, own[100:200].numpy().tobytes())]
    assert own[:100].tolist() == list(range(100))
    device.close()


def test_live_state_is_sent_through_a_few_buffers_where_the_own_replica_comes_last(
    sent: Sent,
) -> None:
    engine, pinned = Held(), []
    engine.pin = pinned.append  # type: ignore[method-assign]
    engine.may.release(99)
    device, own = started(engine, sent, lambda: None)
    device.wait_captured()
    arrived = [0]
    device.hold_live(SECTIONS, LIVE, own.numel())
    assert device.captured_bytes() == own.numel()
    for number in range(9):  # more than there are buffers, and none is waited for by the caller
        start = 30 * number
        device.post(number, [Send(1, start, start + 30)], [], lambda *_: arrived.append(1), [])
    assert [piece for _, piece in sent.posted] == [
        own[30 * number : 30 * number + 30].numpy().tobytes() for number in range(9)
    ]
    assert len(pinned) == 4
    assert len(arrived) == 1 + 9 - 4
    again = torch.empty_like(own)
    device.read(0, again)
    assert torch.equal(again, own)
    device.wait_captured()
    device.close()


@pytest.mark.parametrize("where", ["copy", "look"])
def test_what_fails_in_the_thread_is_raised_where_it_is_waited_for(sent: Sent, where: str) -> None:
    def look() -> None:
        raise OSError("no state")

    engine = Held()
    engine.error = OSError("no engine") if where == "copy" else None
    device, own = started(engine, sent, look)
    engine.may.release(9)
    what = "no engine" if where == "copy" else "no state"
    with pytest.raises(RuntimeError, match=f"a capture failed: {what}"):
        device.wait_captured()
    with pytest.raises(RuntimeError, match=f"a capture failed: {what}"):
        device.post(1, [Send(1, 0, own.numel())], [], lambda *_: None, [])
    assert not sent.posted
    device.close()


def test_the_next_capture_is_sent_from_its_own_bytes(sent: Sent) -> None:
    engine, freed = Held(), [0]
    device, first = started(engine, sent, lambda: freed.append(1))
    engine.may.release(9)
    device.wait_captured()
    other = torch.zeros_like(first)
    device.capture(SECTIONS, [None, LIVE[1]], other, lambda: freed.append(2))
    device.post(1, [Send(1, 0, 100)], [], lambda *_: None, [])
    device.wait_captured()
    assert sent.posted == [(1, bytes(100))]
    assert freed == [0, 1, 2]
    device.close()


@given(st.integers(0, 5 * STRIPE_BYTES), st.integers(1, 6))
def test_stripes_are_the_piece_in_its_order(size: int, groups: int) -> None:
    piece = torch.empty(size, dtype=torch.uint8)
    found = striped(piece, groups)
    assert 1 <= len(found) <= groups
    assert sum(stripe.numel() for stripe in found) == size
    end = piece.data_ptr()
    for stripe in found:
        assert stripe.data_ptr() == end or stripe.numel() == 0
        end += stripe.numel()
    if len(found) > 1:
        assert min(stripe.numel() for stripe in found) > STRIPE_BYTES - 4096 * groups


@pytest.mark.parametrize(
    ("ranks", "cores", "count"),
    [(1, 2, 1), (1, 8, 4), (1, 128, 4), (2, 8, 2), (4, 64, 1), (8, 128, 1), (8, 4, 1)],
)
def test_few_ranks_have_more_stripes_if_cores_are_to_spare(
    ranks: int, cores: int, count: int
) -> None:
    assert streams_each(ranks, cores) == count
