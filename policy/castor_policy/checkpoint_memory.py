"""Which of a replica's buffers may be written, and which iterations may be offered.

A replica has two buffers, one complete and one in progress (Gemini, sec. 7.1). Double buffering
alone keeps one iteration that all shards share only if nobody writes over the newest iteration that
is complete *everywhere*: a rank may be one iteration ahead of the others when a machine dies.

To save memory a rank's own replica may have a single buffer, which is written over only once all
remote replicas of the newer iteration are agreed on (docs/invariants.md, "Less memory").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

FAST: Final = "fast"
"""Two buffers for every replica: the live state is free as soon as it is captured."""

SAVING: Final = "saving"
"""One for the own replica, two for the others'."""


class BufferState(IntEnum):
    """What a buffer holds; the numbers are part of the layout of checkpoint memory."""

    EMPTY = 0
    WRITING = 1
    COMPLETE = 2
    CORRUPT = 3


@dataclass(frozen=True, slots=True)
class BufferHeader:
    """What one buffer says of itself.

    Attributes:
        state: see `BufferState`.
        iteration: the iteration it holds, or held when it was found corrupt; -1 where unknown.
        generation: the attempt at running all trainers that wrote it; -1 where unknown.

    Raises:
        ValueError: a buffer being written or complete names no iteration or generation.
    """

    state: BufferState
    iteration: int = -1
    generation: int = -1

    def __post_init__(self) -> None:
        if self.state in (BufferState.WRITING, BufferState.COMPLETE) and (
            self.iteration < 0 or self.generation < 0
        ):
            raise ValueError(
                f"a buffer that is {self.state.name} needs an iteration and a generation of 0 or "
                f"more, not {self.iteration} and {self.generation}"
            )


def buffers_of(mode: str, replicas: int, *, is_own: bool) -> int:
    """Return how many buffers a replica has.

    Args:
        mode: `FAST` or `SAVING`.
        replicas: m, the own one included. With one there is no peer to fall back on: it needs two.
        is_own: whether it is of a part that its own machine trains.
    """
    return 1 if mode == SAVING and is_own and replicas > 1 else 2


def shards_in_memory(mode: str, replicas: int) -> int:
    """Return how many shards' memory checkpoints take on a machine that holds m: 2m, or 2m - 1.

    Args:
        mode: `FAST` or `SAVING`.
        replicas: m.
    """
    own = buffers_of(mode, replicas, is_own=True)
    return own + (replicas - 1) * buffers_of(mode, replicas, is_own=False)


def smaller(mode: str, replicas: int) -> list[tuple[str, int]]:
    """Return what takes less memory than this mode and number of replicas, what keeps most first.

    Returns:
        Modes and numbers of replicas: as many replicas in less memory before fewer of them.
    """
    found = [
        (other, count)
        for count in range(replicas, 0, -1)
        for other in ((FAST, SAVING) if count > 1 else (FAST,))
    ]
    held = shards_in_memory(mode, replicas)
    return [choice for choice in found if shards_in_memory(*choice) < held]


def fills_own_last(buffers: int) -> bool:
    """Whether an own replica of so many buffers is filled after the agreement on the remote ones.

    With one buffer: before it, what it holds is still needed.
    """
    return buffers == 1


def buffer_to_write(
    headers: Sequence[BufferHeader],
    agreed: int | None,
    iteration: int,
    *,
    beside_fetch: bool = False,
) -> int:
    """Return the index of the buffer that the next capture or transfer may overwrite.

    Never the complete buffer of `agreed`, the newest iteration known to be complete on every rank
    (None: none is); where several hold it, the one of the newest generation is kept. What is not
    complete goes first, then the oldest iteration; of equals the lower index.

    An only buffer may be written over by what is agreed on itself: peers hold that whole.

    A fetch of `agreed` may be filling the replica, or be about to. By the rule above it takes the
    first buffer, so who writes beside it takes the last one; where `agreed` is complete, the other.

    Args:
        headers: of the replica's buffers.
        agreed: see above; for an own replica of one buffer: the newest that all peers have.
        iteration: what is to be written.
        beside_fetch: the replica may be fetched meanwhile.

    Raises:
        ValueError: every buffer is the kept one, or there is none.
    """
    if len(headers) == 1 and iteration == agreed:
        return 0
    kept = max(
        (
            (header.generation, index)
            for index, header in enumerate(headers)
            if header.state is BufferState.COMPLETE and header.iteration == agreed
        ),
        default=(0, -1),
    )[1]
    if beside_fetch and kept < 0 and len(headers) > 1:
        return len(headers) - 1
    free = [index for index in range(len(headers)) if index != kept]
    if not free:
        raise ValueError(
            f"none of {len(headers)} buffers may be written with iteration {iteration} while "
            f"{agreed} is the newest on every rank; give the replica two buffers, or agree first"
        )
    return min(free, key=lambda index: _worth(headers[index]))


def is_of_run(run: str, wanted: str) -> bool:
    """Whether memory that a run wrote may be offered, loaded or sent in the run that is `wanted`.

    Never another run's, whatever its job is called: see `JobSpec.run`.
    """
    return run == wanted


def offered(headers: Sequence[BufferHeader]) -> frozenset[int]:
    """Return the iterations that may be offered for recovery: those of complete buffers."""
    return frozenset(header.iteration for header in headers if header.state is BufferState.COMPLETE)


def newest_generation(headers: Sequence[BufferHeader]) -> int:
    """Return the newest generation that completed a buffer here; 0 if none did."""
    complete = [header for header in headers if header.state is BufferState.COMPLETE]
    return max((header.generation for header in complete), default=0)


def _worth(header: BufferHeader) -> tuple[bool, int, int]:
    if header.state is BufferState.COMPLETE:
        return True, header.iteration, header.generation
    return False, 0, 0
