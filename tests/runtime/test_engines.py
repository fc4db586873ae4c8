"""Which adapter stands for which engine."""

from __future__ import annotations

import pytest
import torch

from castor_configs.plugins import VARIABLE
from castor_runtime.state.protocol import State
from castor_runtime.trainer.engines import state_of
from castor_runtime.trainer.tensor_state import TensorState


class Engine:
    """Not Castor's."""


class Derived(Engine):
    """Nor this one."""


def made(engine: Engine) -> State:
    return TensorState({type(engine).__name__: torch.zeros(3)})


def test_an_adapter_stands_for_the_types_derived_from_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, f"engines.{Engine.__module__}.Engine = {__file__}:made")
    assert state_of(Derived()).sections[0].name == "Derived"


def test_a_state_is_its_own() -> None:
    state = TensorState({"t": torch.zeros(3)})
    assert state_of(state) is state


def test_an_engine_that_nobody_stands_for_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"state of a torch\S*Linear; it knows deepspeed"):
        state_of(torch.nn.Linear(1, 1))
