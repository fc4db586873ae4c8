"""A loss is told when it is known, and nobody waits for the GPU that computes it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from castor_lab.fake_cuda import FakeCuda
from castor_policy.membership import LIMITS
from castor_records.events.event import Event
from castor_runtime.trainer.trainer_log import TrainerLog


class Link:
    """Hears what an agent would."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def event(self, event: Event) -> None:
        self.events.append(event)

    def told(self) -> list[tuple[int, float | None]]:
        return [(event.iteration, event.loss) for event in self.events]


def log_to(link: Link) -> TrainerLog:
    settings: Any = SimpleNamespace(who={"generation": 0, "rank": 0}, rank=0, limits=LIMITS)
    return TrainerLog(settings, link, SimpleNamespace())  # type: ignore[arg-type]  # stand-ins


def test_a_number_is_told_at_once() -> None:
    link = Link()
    log = log_to(link)
    for iteration, loss in enumerate((None, 2, torch.tensor([0.5], requires_grad=True)), 1):
        log.iteration_ended(iteration, loss, 1.0, 0.5, None)
    assert link.told() == [(1, None), (2, 2.0), (3, 0.5)]


def test_training_does_not_wait_for_a_loss_that_a_gpu_computes(cuda: FakeCuda) -> None:
    link = Link()
    log = log_to(link)
    loss = cuda.tensor(torch.tensor([0.5]))
    cuda.launch("the loss", writes=[loss], takes_ns=10_000_000)
    log.iteration_ended(1, loss, 1.0, 0.5, None)
    assert not link.told()
    cuda.host_works(5_000_000)
    log.iteration_ended(2, None, 1.0, 0.5, None)
    assert not link.told(), "in their order"
    cuda.host_works(6_000_000)
    log.iteration_ended(3, None, 1.0, 0.5, None)
    assert link.told() == [(1, 0.5), (2, None), (3, None)]
    assert not cuda.host_waits_by
    assert not cuda.faults


def test_an_iteration_is_told_before_its_checkpoint_and_at_the_end(cuda: FakeCuda) -> None:
    link = Link()
    log = log_to(link)
    loss = cuda.tensor(torch.tensor(0.25))
    for iteration in (1, 2):
        cuda.launch("the loss", writes=[loss], takes_ns=10_000_000)
        log.iteration_ended(iteration, loss, 1.0, 0.5, None)
    log.tell_iterations(1)
    assert link.told() == [(1, 0.25)]
    log.tell_iterations(2)
    assert link.told() == [(1, 0.25), (2, 0.25)]
