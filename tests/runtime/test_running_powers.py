"""The running powers of DeepSpeedCPUAdam come back to the last bit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from castor_runtime.trainer.running_powers import RunningPowers


class Powers:
    """`Adam_Optimizer::IncrementStep` of DeepSpeed 0.19.8 (csrc/includes/cpu_adam.h), in float32.

    The real one takes a minute to compile: `test_held_state.py` does, and trains with it.
    """

    def __init__(self, betas: tuple[float, float]) -> None:
        self.betas = np.float32(betas)
        self.step = 0
        self.powers = np.float32([1, 1])

    def adam_update(self, _id: int, step: int, _lr: float, *rest: Any) -> None:
        betas = np.float32(rest[:2])
        if (betas == self.betas).all() and step == self.step:
            return
        if (betas == self.betas).all() and step == self.step + 1:
            self.powers = self.powers * betas
        else:
            self.powers = np.float32(betas.astype(np.float64) ** step)
        self.betas, self.step = betas, step


class Adam(torch.optim.Optimizer):
    """Calls the C++ object for each parameter as DeepSpeedCPUAdam does."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        shared = {"lr": 0.1, "eps": 1e-8, "weight_decay": 0.0, "bias_correction": True}
        super().__init__(groups, shared)
        self.ds_opt_adam, self.opt_id = Powers(groups[0]["betas"]), 0

    def step(self, closure: Any = None) -> None:  # noqa: ARG002 - torch's signature
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["step"] = state.get("step", 0) + 1
                self.ds_opt_adam.adam_update(0, state["step"], group["lr"], *group["betas"])


def made(betas: list[tuple[float, float]]) -> tuple[Adam, RunningPowers]:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in betas for _ in range(2)]
    pairs = zip(betas, parameters[::2], parameters[1::2], strict=True)
    adam = Adam([{"params": [one, two], "betas": both} for both, one, two in pairs])
    return adam, RunningPowers(adam, parameters, [index // 2 for index in range(len(parameters))])


@pytest.mark.long
@pytest.mark.parametrize("betas", [[(0.9, 0.999)], [(0.9, 0.999), (0.9, 0.95)]])
def test_the_powers_are_those_of_a_training_that_went_on(betas: list[tuple[float, float]]) -> None:
    adam, powers = made(betas)
    for _ in range(157):
        adam.step()
    again, powers_again = made(betas)
    states = iter(adam.state.values())
    for group in again.param_groups:
        for parameter in group["params"]:
            again.state[parameter]["step"] = next(states)["step"]
    powers_again.restore(powers.first)
    for _ in range(3):
        adam.step()
        again.step()
        assert (adam.ds_opt_adam.powers == again.ds_opt_adam.powers).all()


def test_an_optimizer_without_powers_is_left_alone() -> None:
    optimizer = SimpleNamespace(state={}, param_groups=[])
    powers = RunningPowers(optimizer, [], [])  # type: ignore[arg-type]
    powers.restore(None)
    assert powers.first is None
