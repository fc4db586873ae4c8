"""A checkpoint is one moment, whatever a script changes between step() and the next update."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from castor_runtime.state.sections import lay_out
from castor_runtime.trainer.moment import Moments, tensor_digests, weighed


def moments(
    *names: str, clone_at_capture: tuple[str, ...] = (), trained: tuple[str, ...] = ()
) -> Moments:
    sections = lay_out([(name, torch.float32, (300,)) for name in names])
    return Moments(sections, clone_at_capture, trained)


def tensors(count: int) -> list[torch.Tensor | None]:
    return [torch.arange(300.0) + index for index in range(count)]


def test_what_anybody_may_change_is_cloned_at_the_moment() -> None:
    live = tensors(1)
    moment = moments("buffer/a", clone_at_capture=("buffer/a",)).take(live)
    assert live[0] is not None
    live[0].zero_()
    assert moment.live[0] is not None
    assert torch.equal(moment.live[0], torch.arange(300.0))
    assert moment.torn() == ()
    assert not moment.settling


@pytest.mark.parametrize("hidden", [False, True])
def test_a_trained_tensor_that_changes_meanwhile_is_named_and_cloned_from_then_on(
    hidden: bool,
) -> None:
    live = tensors(2)
    keeper = moments("fp32/0", "fp32/1", trained=("fp32/0", "fp32/1"))
    still = keeper.take(live)
    assert still.live[1] is live[1]
    assert still.torn() == ()
    moment = keeper.take(live)
    assert live[1] is not None
    (live[1].data if hidden else live[1]).mul_(2)
    assert moment.torn() == ("fp32/1",)
    again = keeper.take(live)
    assert again.live[0] is live[0]
    assert again.live[1] is not live[1]


def test_what_should_stand_still_is_watched_by_its_bytes() -> None:
    live = tensors(1)
    keeper = moments("frozen/a")
    for _ in range(3):  # training waits for these copies
        moment = keeper.take(live)
        assert moment.settling
        assert moment.torn() == ()
    moment = keeper.take(live)
    assert not moment.settling
    assert moment.live[0] is live[0]
    assert live[0] is not None
    live[0].data[17] = -1.0
    assert moment.torn() == ("frozen/a",)
    assert keeper.take(live).live[0] is not live[0]


def test_what_moves_from_the_start_is_cloned_and_tears_nothing() -> None:
    live = tensors(1)
    keeper = moments("frozen/a")
    assert live[0] is not None
    assert keeper.take(live).torn() == ()
    live[0].mul_(0.5)
    assert keeper.take(live).torn() == (), "it was copied while training waited"
    moment = keeper.take(live)
    assert moment.live[0] is not live[0]
    assert not moment.settling
    live[0].mul_(0.5)
    assert moment.torn() == ()


@given(st.binary(min_size=1, max_size=200), st.data())
def test_digests_of_a_device_see_every_byte(content: bytes, data: st.DataObject) -> None:
    raw = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    index = data.draw(st.integers(0, len(content) - 1))
    changed = raw.clone()
    changed[index] ^= data.draw(st.integers(1, 255))
    assert int(weighed(raw)) == int(weighed(raw.clone()))
    assert int(weighed(raw)) != int(weighed(changed))
    assert tensor_digests([raw]) != tensor_digests([changed])


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.0),
        torch.full((2, 3), float("nan"), dtype=torch.bfloat16),
        torch.zeros(4, 6).T,
        torch.zeros(1, dtype=torch.complex128),
        torch.zeros(5, dtype=torch.bool),
    ],
)
def test_a_look_fits_tensors_of_every_kind(tensor: torch.Tensor) -> None:
    sections = lay_out([("a", tensor.dtype, tuple(tensor.shape))])
    keeper = Moments(sections, (), ("a",))
    assert keeper.take([tensor]).torn() == ()
    moment = keeper.take([tensor])
    tensor.data.fill_(1)
    assert moment.torn() == ("a",)
