"""A script that changes what it can between `step` and the next update, run by `test_moment.py`.

A frozen teacher follows the student at the start of the next forward pass (Mean Teacher, MoCo), a
buffer is made in the first one and replaced in each, another grows, and so does the script's log.
All of them are in the loss, so that any of them gone wrong shows in the final parameters.
"""

from __future__ import annotations

import copy
from typing import Any

import deepspeed
import torch

from castor import Checkpointer

ITERATIONS = 14


class Student(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(64, 512), torch.nn.Tanh(), torch.nn.Linear(512, 64)
        )
        self.register_buffer("scale", None)
        self.register_buffer("positions", torch.linspace(0, 1, 4), persistent=False)

    def forward(self, inputs: torch.Tensor) -> Any:
        seen = inputs.detach().abs().mean(0)
        self.scale = seen if self.scale is None else self.scale * 0.8 + seen * 0.2
        if len(inputs) > len(self.positions):
            self.positions = torch.linspace(0, 1, len(inputs))
        places = self.positions[: len(inputs), None] + self.positions.mean()
        return self.layers(inputs / self.scale) + 0.1 * places


class Pair(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student = Student()
        self.teacher = copy.deepcopy(self.student.layers).requires_grad_(False)

    def forward(self, inputs: torch.Tensor, weight: float) -> torch.Tensor:
        found = self.student(inputs)
        loss: torch.Tensor = (found - inputs.roll(1, 1)).square().mean()
        return loss + weight * (found - self.teacher(inputs)).square().mean()

    @torch.no_grad()
    def follow(self) -> None:
        pairs = zip(self.student.layers.parameters(), self.teacher.parameters(), strict=True)
        for student, teacher in pairs:  # every rank its own partitions
            teacher.ds_tensor.lerp_(student.ds_tensor, 0.5)


class Log:
    """Grows by some 40 KB an iteration."""

    def __init__(self) -> None:
        self.rows: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = state["rows"]


def main() -> None:
    deepspeed.init_distributed()
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    model = Pair()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(trained, lr=3e-3),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
            "steps_per_print": 1 << 30,
        },
    )
    log = Log()
    checkpointer = Checkpointer(engine, state={"log": log})
    for iteration in range(checkpointer.resume(), ITERATIONS):
        if iteration:
            model.follow()
        draw = torch.Generator().manual_seed(1000 * iteration + rank)
        inputs = torch.randn(4 if iteration < 5 else 9, 64, generator=draw)
        loss = engine(inputs, len(log.rows) * 1e-5)
        engine.backward(loss)
        engine.step()
        log.rows += [float(loss) + row for row in range(2000)]
        checkpointer.step(loss=loss)
    checkpointer.finish()


if __name__ == "__main__":
    main()
