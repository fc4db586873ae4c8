"""Failures as a stream of blocks: what a simulator reads, from a trace or from a generator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from castor_traces.trace import Failure, Trace, make_trace

#: Rows of a generated block at most: memory is bounded by this, not by the horizon.
BLOCK_ROWS: Final = 32_768

#: The longest horizon, 73 years: sums of two or three such times still fit into int64.
MAX_HORIZON_NS: Final = 2**61


@dataclass(frozen=True, slots=True, eq=False)
class FailureBlock:
    """Consecutive failures of a stream, column by column.

    Attributes:
        time_ns: int64, nanoseconds from the start; never decreasing, nor from block to block.
        machine: int32, 0-based; -1 for "any machine" (only from a trace that names none).
        hardware: bool, False for a software failure.
        duration_ns: int64, how long the machine is out of service; -1 for "not given".
        domain: int32, the failure domain that failed whole; -1 for a machine failing by itself.
        cause: int16, an index into the `causes` of the stream; -1 for none.
    """

    time_ns: NDArray[np.int64]
    machine: NDArray[np.int32]
    hardware: NDArray[np.bool_]
    duration_ns: NDArray[np.int64]
    domain: NDArray[np.int32]
    cause: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.time_ns)

    def rows(self, chosen: slice | NDArray[np.bool_] | NDArray[np.int64]) -> FailureBlock:
        """Return the chosen rows as a block."""
        return FailureBlock(*(getattr(self, column.name)[chosen] for column in fields(self)))


def joined(blocks: Sequence[FailureBlock]) -> FailureBlock:
    """Return the rows of all blocks, one block after the other."""
    if len(blocks) == 1:
        return blocks[0]
    return FailureBlock(
        *(
            np.concatenate([getattr(block, column.name) for block in blocks])
            for column in fields(FailureBlock)
        )
    )


class FailureStream(Protocol):
    """Failures of a cluster over a horizon, to be read from the start any number of times."""

    @property
    def machines(self) -> int:
        """How many machines there are; failures name 0 .. machines - 1."""

    @property
    def causes(self) -> tuple[str, ...]:
        """The names that `FailureBlock.cause` counts in."""

    def blocks(self) -> Iterator[FailureBlock]:
        """Yield the failures from the start, in order, in blocks of bounded size."""


class FailureProcess(Protocol):
    """A random process of failures: with a seed and a horizon it becomes a `FailureStream`."""

    @property
    def machines(self) -> int:
        """How many machines there are; failures name 0 .. machines - 1."""

    @property
    def causes(self) -> tuple[str, ...]:
        """The names that `FailureBlock.cause` counts in."""

    def blocks(self, seed: int, horizon_ns: int, *path: str | int) -> Iterator[FailureBlock]:
        """Yield the failures in [0, horizon_ns), in order.

        The same seed gives the same failures; a longer horizon only adds failures at the end.

        Args:
            seed: the seed of the run, from 0.
            horizon_ns: nanoseconds, 0 to `MAX_HORIZON_NS`.
            path: the name of this process among others that share the seed.

        Raises:
            ValueError: if the horizon or the seed is out of range.
        """


@dataclass(frozen=True, slots=True)
class GeneratedStream:
    """The failures of a process for one seed, up to a horizon in nanoseconds."""

    process: FailureProcess
    seed: int
    horizon_ns: int

    @property
    def machines(self) -> int:
        """How many machines there are."""
        return self.process.machines

    @property
    def causes(self) -> tuple[str, ...]:
        """The names that `FailureBlock.cause` counts in."""
        return self.process.causes

    def blocks(self) -> Iterator[FailureBlock]:
        """Yield the failures from the start, the same at each call."""
        return self.process.blocks(self.seed, self.horizon_ns)


@dataclass(frozen=True, slots=True)
class TraceStream:
    """The failures of a trace. Domains and causes are numbered in the order of their names."""

    trace: Trace
    causes: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        named = {failure.cause for failure in self.trace.failures} - {""}
        object.__setattr__(self, "causes", tuple(sorted(named)))

    @property
    def machines(self) -> int:
        """How many machines were watched."""
        return self.trace.machines

    def blocks(self) -> Iterator[FailureBlock]:
        """Yield the failures of the trace; -1 for a machine, a duration or a name not given."""
        failures = self.trace.failures
        arrays = self.trace.arrays()
        domains = _numbered({failure.domain for failure in failures})
        causes = _numbered({failure.cause for failure in failures})
        domain = np.array([domains[failure.domain] for failure in failures], dtype=np.int32)
        cause = np.array([causes[failure.cause] for failure in failures], dtype=np.int16)
        for start in range(0, len(failures), BLOCK_ROWS):
            part = slice(start, start + BLOCK_ROWS)
            yield FailureBlock(
                time_ns=arrays.time_ns[part],
                machine=arrays.machine[part],
                hardware=arrays.hardware[part],
                duration_ns=arrays.duration_ns[part],
                domain=domain[part],
                cause=cause[part],
            )


def _numbered(names: set[str]) -> dict[str, int]:
    return {"": -1} | {name: number for number, name in enumerate(sorted(names - {""}))}


def to_trace(
    process: FailureProcess,
    seed: int,
    horizon_ns: int,
    *,
    name: str,
    source: str = "",
    notes: Iterable[tuple[str, str]] = (),
) -> Trace:
    """Generate a trace: the same arguments give the same trace, byte for byte, everywhere.

    Args:
        process: what fails, how often and for how long.
        seed: the seed, from 0; kept in the trace as a note, beside the process.
        horizon_ns: the span of the trace in nanoseconds.
        name: the name of the trace.
        source: where the rates come from.
        notes: further lines for the head of the file.

    Raises:
        ValueError: if the horizon or the seed is out of range.
    """
    causes = process.causes
    failures: list[Failure] = []
    for block in process.blocks(seed, horizon_ns):
        columns = zip(
            block.time_ns.tolist(),
            block.machine.tolist(),
            block.hardware.tolist(),
            block.duration_ns.tolist(),
            block.domain.tolist(),
            block.cause.tolist(),
            strict=True,
        )
        for time_ns, machine, hardware, duration_ns, domain, cause in columns:
            failures.append(
                Failure(
                    time_ns=time_ns,
                    machine=machine,
                    kind="hardware" if hardware else "software",
                    duration_ns=None if duration_ns < 0 else duration_ns,
                    domain="" if domain < 0 else f"domain-{domain}",
                    cause="" if cause < 0 else causes[cause],
                )
            )
    return make_trace(
        name,
        process.machines,
        horizon_ns,
        failures,
        source=source,
        licence="none needed: generated",
        notes=(("seed", str(seed)), ("process", repr(process)), *notes),
    )
