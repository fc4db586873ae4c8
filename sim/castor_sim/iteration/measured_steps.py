"""The steps of a measured iteration: what the training program's main thread did, in order.

    compute 12.5ms                    arithmetic, or whatever else the thread did meanwhile
    issue all_gather 786432 31ms      start a collective of so many bytes, which takes so long
    wait 0                            go on once collective number 0 has ended

Collectives are numbered in order of issue from 0. One that the thread stands still for is an
`issue` followed by its `wait`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import BeforeValidator, PlainSerializer

from castor_configs.quantities import parse_bytes, parse_ns
from castor_sim.iteration.tasks import Kind, Lane, Task

_NS_PER_MS: Final = 10**6
_EXPECTED: Final = (
    'expected "compute TIME", "issue OPERATION BYTES TIME" or "wait NUMBER", such as '
    '"issue all_gather 786432 31ms"'
)


@dataclass(frozen=True, slots=True)
class Compute:
    """The main thread is at work for `duration_ns`."""

    duration_ns: int


@dataclass(frozen=True, slots=True)
class Issue:
    """The main thread starts a collective.

    Attributes:
        operation: its name, as DeepSpeed's backend has it.
        size_bytes: the larger of what goes in and what comes out on a rank.
        duration_ns: how long it takes once the network is free.
    """

    operation: str
    size_bytes: int
    duration_ns: int


@dataclass(frozen=True, slots=True)
class Wait:
    """The main thread goes on once collective `number` has ended."""

    number: int


Step = Compute | Issue | Wait


def parse_step(value: object) -> Step:
    """Return the step that a profile's line says.

    Raises:
        ValueError: it says none.
    """
    if isinstance(value, Compute | Issue | Wait):
        return value
    match value.split() if isinstance(value, str) else []:
        case ["compute", duration]:
            return Compute(parse_ns(duration))
        case ["issue", operation, size, duration]:
            return Issue(operation, parse_bytes(size), parse_ns(duration))
        case ["wait", number] if number.isascii() and number.isdigit():
            return Wait(int(number))
        case _:
            raise ValueError(f"{_EXPECTED}; got {value!r}")


def step_line(step: Step) -> str:
    """Return a step as a profile says it; `parse_step` reads it back to the nanosecond."""
    match step:
        case Compute(duration_ns):
            return f"compute {_milliseconds(duration_ns)}"
        case Issue(operation, size_bytes, duration_ns):
            return f"issue {operation} {size_bytes} {_milliseconds(duration_ns)}"
        case Wait(number):
            return f"wait {number}"


StepLine = Annotated[
    Step,
    BeforeValidator(parse_step),
    PlainSerializer(step_line, return_type=str, when_used="json"),
]
"""A step, written as a line of text."""


def check_steps(steps: Sequence[Step]) -> None:
    """Check that a main thread can run through `steps`.

    Raises:
        ValueError: a wait is for a collective that was not issued before it, or nothing takes
            any time.
    """
    issued = 0
    for index, step in enumerate(steps):
        if isinstance(step, Issue):
            issued += 1
        elif isinstance(step, Wait) and step.number >= issued:
            raise ValueError(
                f"step {index} waits for collective {step.number}, of which {issued} were issued "
                "before it: they are numbered from 0"
            )
    if not any(step.duration_ns for step in steps if not isinstance(step, Wait)):
        raise ValueError("expected an iteration that takes time: every step takes none")


def step_tasks(
    steps: Sequence[Step], update_ns: int, update_traffic_ns: int = 0
) -> tuple[Task, ...]:
    """Return the iteration as operations on lanes.

    Computations follow one another, each behind the waits before it. A collective takes the
    network behind those issued before it, and begins no earlier than the main thread came to it.
    The update comes last, and after every collective.

    Args:
        steps: as `check_steps` wants them.
        update_ns: what follows them: the optimizer's update.
        update_traffic_ns: its last part, in which it uses the network (parameters that every rank
            keeps are gathered again).
    """
    tasks: list[Task] = []
    collectives: list[int] = []
    reached: tuple[int, ...] = ()  # the tasks behind which the main thread is now
    computations = 0
    for step in steps:
        match step:
            case Compute(0):
                continue
            case Compute(duration_ns):
                name = f"computation {computations}"
                tasks.append(Task(name, Kind.COMPUTE, Lane.GPU, duration_ns, reached))
                reached = (len(tasks) - 1,)
                computations += 1
            case Issue(operation, size_bytes, duration_ns):
                kind = Kind.GATHER if "gather" in operation else Kind.REDUCE
                name = f"{operation} {len(collectives)}"
                collectives.append(len(tasks))
                tasks.append(
                    Task(name, kind, Lane.NETWORK, duration_ns, reached, size_bytes=size_bytes)
                )
            case Wait(number):
                reached = tuple(sorted({*reached, collectives[number]}))
    behind = tuple(sorted({*reached, *collectives}))
    alone_ns = max(0, update_ns - update_traffic_ns)
    tasks.append(Task("update", Kind.UPDATE, Lane.GPU, alone_ns, behind))
    if update_traffic_ns:
        after = (len(tasks) - 1,)
        tasks.append(
            Task("traffic of the update", Kind.UPDATE, Lane.NETWORK, update_traffic_ns, after)
        )
    return tuple(tasks)


def _milliseconds(duration_ns: int) -> str:
    whole, rest = divmod(duration_ns, _NS_PER_MS)
    decimals = f".{rest:06}".rstrip("0") if rest else ""
    return f"{whole}{decimals}ms"
