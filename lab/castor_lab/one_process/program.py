"""What the trainers of a job in one process train: a few tensors, exact in every bit.

Each iteration adds up numbers of all ranks, so that no rank can go ahead of the others, and what
one rank has got wrong is in the state of all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from castor_lab.one_process.persistent_state import PersistentTensorState
from castor_lab.one_process.thread_trainer import TrainerThread
from castor_runtime.trainer.tensor_state import TensorState

_MODULUS = 0x7FFFFFFF
_DRAWS = 300
"""An iteration: after a few the state has outgrown the room that it was given."""


class Sampler:
    """A user's state: what it has drawn decides what comes next, and it grows with each draw."""

    def __init__(self, rank: int) -> None:
        self.drawn = [rank]

    def next(self) -> float:
        """Draw a number, 0 to 1."""
        for _ in range(_DRAWS):
            self.drawn.append((self.drawn[-1] * 48271 + len(self.drawn)) % _MODULUS)
        return self.drawn[-1] / _MODULUS

    def state_dict(self) -> dict[str, Any]:
        """Return all that was drawn."""
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.drawn = state["drawn"]


def program(
    iterations: int,
    elements: int,
    at_step: Callable[[TrainerThread, int], None],
    at_load: Callable[[TrainerThread], None],
    ended: Callable[[TrainerThread, int], None],
) -> Callable[[TrainerThread], None]:
    """Return what every trainer does.

    Args:
        iterations: of the job.
        elements: float32 numbers of each rank, and as many for its momentum.
        at_step: called before each update with how many updates are done.
        at_load: called before the trainer loads.
        ended: called when an iteration has ended, with its number.
    """

    def train(trainer: TrainerThread) -> None:
        rank = trainer.settings.rank
        weight = torch.linspace(rank, rank + 1, elements, requires_grad=True)
        optimizer = torch.optim.SGD([weight], lr=0.01, momentum=0.9)
        state: TensorState
        if trainer.settings.persistence.tiers:
            state = PersistentTensorState(weight, optimizer, trainer.settings)
        else:
            state = TensorState({"weight": weight}, optimizer)
        sampler = Sampler(rank + 1)
        everybody = trainer.make_group("gloo")
        session = trainer.join(state, {"sampler": sampler})
        at_load(trainer)
        done = session.resume({"sampler": sampler})
        for iteration in range(done, iterations):
            trainer.go_on()
            at_step(trainer, iteration)
            drawn = torch.tensor([sampler.next()])
            dist.all_reduce(drawn, group=everybody)
            weight.grad = weight.detach().sin() * drawn
            session.before_update()
            optimizer.step()
            state.stepped()
            session.step(float(drawn), trainer.meta)
            ended(trainer, iteration + 1)
        session.finish(trainer.meta)

    return train
