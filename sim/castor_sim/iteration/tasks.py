"""What an iteration consists of: operations, where each runs, and what each waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Lane(StrEnum):
    """A resource of a machine that serves one operation at a time, in order of arrival."""

    GPU = "gpu"
    """All GPUs of the machine: they work in lock-step."""
    NETWORK = "network"
    """The machine's network card, both directions: every GPU's traffic passes it."""
    LINK = "link"
    """The links between the GPUs of the machine."""


class Kind(StrEnum):
    """What an operation does; also its colour in a picture."""

    FORWARD = "forward"
    RECOMPUTE = "recompute"
    BACKWARD = "backward"
    COMPUTE = "compute"
    """Measured time between two communications, whatever the GPUs did in it."""
    GATHER = "gather"
    REDUCE = "reduce"
    SEND = "send"
    CHECK = "check"
    """Overflow check, norm and clipping of the gradients: reads the state, does not write it."""
    UPDATE = "update"
    """The optimizer's update, which writes the state: checkpoint traffic has to end before."""


@dataclass(frozen=True, slots=True)
class Task:
    """One operation.

    Attributes:
        name: for the timeline, as "gather 3".
        kind: what it does.
        lane: where it runs.
        duration_ns: alone on its lane, without jitter.
        after: indices of the tasks that must have ended, each smaller than its own.
        machine: whose lane it takes.
        size_bytes: what it moves over the lane of one machine; 0 for arithmetic.
    """

    name: str
    kind: Kind
    lane: Lane
    duration_ns: int
    after: tuple[int, ...] = ()
    machine: int = 0
    size_bytes: int = 0

    @property
    def is_training_traffic(self) -> bool:
        """Whether it takes the network before the update; what the update sends is no such."""
        return self.lane is Lane.NETWORK and self.kind is not Kind.UPDATE


def check_tasks(tasks: Sequence[Task]) -> None:
    """Check that an iteration can be run.

    Raises:
        ValueError: there is no task, a duration is negative, or a task waits for a later one.
    """
    if not tasks:
        raise ValueError("an iteration needs at least one task")
    for index, task in enumerate(tasks):
        if task.duration_ns < 0:
            raise ValueError(f"task {task.name} lasts {task.duration_ns} ns: give 0 or more")
        if any(not 0 <= before < index for before in task.after):
            raise ValueError(f"task {task.name} waits for a task that does not come before it")
