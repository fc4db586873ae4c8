"""Several failure processes in one cluster; and machines that cannot fail while they are down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from castor_traces.failure_stream import FailureBlock, FailureProcess, joined

#: "keep": a machine may fail again while it is out of service, as real logs show it.
#: "none": it fails again only after its repair, so that up and down times alternate.
WhileDown = Literal["keep", "none"]


def check_while_down(while_down: str) -> None:
    """Refuse a misspelt choice.

    Raises:
        ValueError: if it is neither "keep" nor "none".
    """
    if while_down not in ("keep", "none"):
        raise ValueError(f'while_down must be "keep" or "none", got {while_down!r}')


def without_failures_while_down(
    blocks: Iterator[FailureBlock], machines: int
) -> Iterator[FailureBlock]:
    """Leave out each failure of a machine whose last kept hardware repair is not over.

    A repair that is not given takes no time here. A machine may fail at the very nanosecond at
    which it comes back.
    """
    back_ns = [0] * machines
    for block in blocks:
        kept: list[int] = []
        columns = zip(
            block.time_ns.tolist(),
            block.machine.tolist(),
            (block.time_ns + block.duration_ns).tolist(),
            block.hardware.tolist(),
            strict=True,
        )
        for row, (time_ns, machine, end_ns, hardware) in enumerate(columns):
            if time_ns < back_ns[machine]:
                continue
            kept.append(row)
            if hardware:
                back_ns[machine] = end_ns
        if len(kept) == len(block):
            yield block
        elif kept:
            yield block.rows(np.array(kept, dtype=np.int64))


def merged(
    streams: Sequence[Iterator[FailureBlock]], cause_offsets: Sequence[int]
) -> Iterator[FailureBlock]:
    """Merge sorted streams of blocks into one; rows of one instant go by machine, then by stream.

    Holds one block of each stream at a time (more only where thousands of rows share an instant).

    Args:
        streams: each with times that never decrease.
        cause_offsets: what to add to the cause of each stream's rows.
    """
    waiting: list[FailureBlock | None] = [
        _next_block(stream, offset) for stream, offset in zip(streams, cause_offsets, strict=True)
    ]
    exhausted = [block is None for block in waiting]
    while any(block is not None for block in waiting):
        # Rows before the earliest "last time seen" cannot be overtaken by rows yet to come.
        ends = [
            int(block.time_ns[-1])
            for block, done in zip(waiting, exhausted, strict=True)
            if block is not None and not done
        ]
        bound = min(ends) if ends else None
        ready: list[FailureBlock] = []
        for index, block in enumerate(waiting):
            if block is None:
                continue
            cut = (
                len(block)
                if bound is None
                else int(np.searchsorted(block.time_ns, bound, side="left"))
            )
            if cut:
                ready.append(block.rows(slice(0, cut)))
            rest = block.rows(slice(cut, None)) if cut < len(block) else None
            if not exhausted[index] and int(block.time_ns[-1]) == bound:
                more = _next_block(streams[index], cause_offsets[index])
                exhausted[index] = more is None
                rest = joined([part for part in (rest, more) if part is not None])
            waiting[index] = rest
        if ready:
            rows = joined(ready)
            yield rows.rows(np.lexsort((rows.machine, rows.time_ns)).astype(np.int64))


def _next_block(stream: Iterator[FailureBlock], cause_offset: int) -> FailureBlock | None:
    for block in stream:
        if not len(block):
            continue
        if cause_offset:
            shifted = np.where(block.cause < 0, block.cause, block.cause + cause_offset)
            return FailureBlock(
                block.time_ns,
                block.machine,
                block.hardware,
                block.duration_ns,
                block.domain,
                shifted.astype(np.int16),
            )
        return block
    return None


@dataclass(frozen=True, slots=True)
class MergedFailures:
    """Several processes over the same machines at once, each with random draws of its own.

    Args:
        parts: the processes, at least one, all with the same number of machines.
        while_down: with "none", a failure of a machine that any part has taken down is left out.

    Raises:
        ValueError: if there is no part, or their numbers of machines differ.
    """

    parts: tuple[FailureProcess, ...]
    while_down: WhileDown = "keep"
    machines: int = field(init=False)
    causes: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        check_while_down(self.while_down)
        counts = sorted({part.machines for part in self.parts})
        if len(counts) != 1:
            raise ValueError(f"merge processes of one number of machines, not of {counts}")
        object.__setattr__(self, "machines", counts[0])
        object.__setattr__(self, "causes", tuple(c for part in self.parts for c in part.causes))

    def blocks(self, seed: int, horizon_ns: int, *path: str | int) -> Iterator[FailureBlock]:
        """Yield the failures in [0, horizon_ns), in order (see `FailureProcess.blocks`)."""
        streams = [
            part.blocks(seed, horizon_ns, *path, number) for number, part in enumerate(self.parts)
        ]
        offsets, total = [], 0
        for part in self.parts:
            offsets.append(total)
            total += len(part.causes)
        rows = merged(streams, offsets)
        if self.while_down == "none":
            return without_failures_while_down(rows, self.machines)
        return rows
