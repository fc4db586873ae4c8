"""An iteration that was interrupted is forgotten where torch alone trains."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from castor_runtime.state.protocol import Interruptible
from castor_runtime.trainer.swap.errors import CannotSwapError
from castor_runtime.trainer.tensor_state import TensorState


class Engine(TensorState):
    """Of somebody else's engine, which may keep whatever it likes."""


class Model:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = torch.nn.Linear(5, 5)
        self.tied = torch.nn.Parameter(self.module.weight.detach()[:2])

    def backward(self) -> None:
        (self.module(torch.ones(1, 5)).sum() + self.tied.sum()).backward()

    def gradients(self) -> list[torch.Tensor | None]:
        return [self.module.weight.grad, self.module.bias.grad, self.tied.grad]


@pytest.mark.parametrize("given", ["state_dict", "parameters", "optimizer"])
def test_no_gradient_is_left_of_tensors_however_they_were_given(given: str) -> None:
    model = Model()
    optimizer = None
    match given:
        case "state_dict":
            tensors = model.module.state_dict()
        case "parameters":
            tensors = dict(model.module.named_parameters())
        case _:
            tensors = {"none of them": torch.zeros(3)}
            optimizer = torch.optim.SGD([*model.module.parameters(), model.tied], lr=0.1)
    state = TensorState(tensors, optimizer)
    assert isinstance(state, Interruptible)
    other = torch.nn.Parameter(torch.ones(3))
    left = state.interrupted_iteration()
    model.backward()
    other.sum().backward()
    assert None not in model.gradients()
    left.throw_away()
    assert model.gradients() == [None] * 3
    assert other.grad is not None  # it is nobody's business here


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.FileStore(str(tmp_path / "s")))
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_module_that_keeps_more_than_gradients_is_refused_by_name() -> None:
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(5, 5))
    state = TensorState(model.state_dict())
    with pytest.raises(CannotSwapError, match="DistributedDataParallel keeps what an interrupted"):
        state.interrupted_iteration()


def test_an_engine_whose_state_is_held_as_tensors_has_to_say_what_it_leaves() -> None:
    with pytest.raises(CannotSwapError, match="Engine does not say what an interrupted iteration"):
        Engine({"t": torch.zeros(3)}).interrupted_iteration()
