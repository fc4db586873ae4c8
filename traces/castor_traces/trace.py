"""A failure trace as a value: what failed, when, for how long, out of how many machines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

FailureKind = Literal["software", "hardware"]
KINDS: Final[tuple[FailureKind, ...]] = ("software", "hardware")

NS_PER_S: Final = 1_000_000_000

#: The header keys with a field of their own in `Trace`; every other key is a note.
RESERVED_KEYS: Final = ("name", "machines", "span_s", "source", "licence")

#: Machine numbers are kept as int32 and instants as int64 nanoseconds (292 years) in arrays.
MAX_MACHINES: Final = 2**31 - 1
MAX_NS: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Failure:
    """One failure of one machine.

    Attributes:
        time_ns: when it fails, in nanoseconds from the start of the trace.
        machine: which machine, 0-based; None if any machine will do.
        kind: "software" is fixed by a restart on the same machine and leaves its memory's
            replicas usable; "hardware" takes the machine and all that its memory held.
        duration_ns: how long the machine is out of service, in nanoseconds; None if unknown,
            and then a model draws it. It may reach beyond the end of the trace.
        domain: the failure domain (rack, switch, power feed) that failed together, or "".
        cause: free text, or "".
    """

    time_ns: int
    machine: int | None
    kind: FailureKind
    duration_ns: int | None = None
    domain: str = ""
    cause: str = ""

    @property
    def order(self) -> tuple[int, int]:
        """The sorting key of a trace: the instant, then the machine, "any" before all others."""
        return (self.time_ns, -1 if self.machine is None else self.machine)


@dataclass(frozen=True, slots=True, eq=False)
class TraceArrays:
    """The failures of a trace, column by column, in the order of the trace; read-only.

    Attributes:
        time_ns: int64, nanoseconds from the start, never decreasing.
        machine: int32, -1 for "any".
        hardware: bool, False for a software failure.
        duration_ns: int64 nanoseconds, -1 for "unknown".
    """

    time_ns: NDArray[np.int64]
    machine: NDArray[np.int32]
    hardware: NDArray[np.bool_]
    duration_ns: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Trace:
    """The failures of `machines` machines over [0, span_ns], as docs/formats.md has them.

    Machines are numbered 0..machines-1, and those that never fail count too. Use `make_trace`
    for failures in no particular order.

    Attributes:
        name: a short name, not empty.
        machines: how many machines were watched, at least 1.
        span_ns: how long they were watched, in nanoseconds.
        failures: sorted by (time_ns, machine), "any" first; equal keys keep their order.
        source: where the failures come from, or "".
        licence: under what terms they may be used, or "".
        notes: further (key, value) lines of the file's head, in their order.

    Raises:
        ValueError: on any value that the file format cannot hold.
    """

    name: str
    machines: int
    span_ns: int
    failures: tuple[Failure, ...]
    source: str = ""
    licence: str = ""
    notes: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.machines <= MAX_MACHINES:
            raise ValueError(f"machines must be 1..{MAX_MACHINES}, not {self.machines}")
        if not 0 <= self.span_ns <= MAX_NS:
            raise ValueError(f"span_ns must be 0..{MAX_NS} (292 years), not {self.span_ns}")
        _check_head(self)
        before = (0, -1)
        for index, failure in enumerate(self.failures):
            _check_failure(failure, index, self)
            if failure.order < before:
                raise ValueError(f"failure {index} is out of order: sort them with make_trace()")
            before = failure.order

    def arrays(self) -> TraceArrays:
        """Return the failures as read-only numpy arrays; a new set at each call."""
        failures = self.failures
        arrays = TraceArrays(
            time_ns=np.array([f.time_ns for f in failures], dtype=np.int64),
            machine=np.array(
                [-1 if f.machine is None else f.machine for f in failures], dtype=np.int32
            ),
            hardware=np.array([f.kind == "hardware" for f in failures], dtype=np.bool_),
            duration_ns=np.array(
                [-1 if f.duration_ns is None else f.duration_ns for f in failures], dtype=np.int64
            ),
        )
        for column in (arrays.time_ns, arrays.machine, arrays.hardware, arrays.duration_ns):
            column.setflags(write=False)
        return arrays


def make_trace(
    name: str,
    machines: int,
    span_ns: int,
    failures: Iterable[Failure],
    *,
    source: str = "",
    licence: str = "",
    notes: Iterable[tuple[str, str]] = (),
) -> Trace:
    """Sort `failures` into a `Trace`; equal instants of one machine keep their order.

    Raises:
        ValueError: as `Trace`.
    """
    ordered = tuple(sorted(failures, key=lambda failure: failure.order))
    return Trace(name, machines, span_ns, ordered, source, licence, tuple(notes))


def _check_head(trace: Trace) -> None:
    if not trace.name:
        raise ValueError("a trace needs a name")
    texts = [("name", trace.name), ("source", trace.source), ("licence", trace.licence)]
    keys = set(RESERVED_KEYS)
    for key, value in trace.notes:
        if not key or ":" in key or key in keys:
            raise ValueError(
                f"note {key!r}: a key is not empty, holds no colon, and is neither one of "
                f"{', '.join(RESERVED_KEYS)} nor given twice"
            )
        keys.add(key)
        texts += [("note", key), (f"note {key}", value)]
    for what, text in texts:
        if text != text.strip() or "\n" in text or "\r" in text:
            raise ValueError(f"{what} {text!r}: keep it on one line, without blanks around it")


def _check_failure(failure: Failure, index: int, trace: Trace) -> None:
    if not 0 <= failure.time_ns <= trace.span_ns:
        raise ValueError(
            f"failure {index}: time_ns must be 0..{trace.span_ns} (the span), not {failure.time_ns}"
        )
    if failure.machine is not None and not 0 <= failure.machine < trace.machines:
        raise ValueError(
            f"failure {index}: machine must be 0..{trace.machines - 1} or None, "
            f"not {failure.machine}"
        )
    if failure.kind not in KINDS:
        raise ValueError(f"failure {index}: kind must be one of {KINDS}, not {failure.kind!r}")
    if failure.duration_ns is not None and not 0 <= failure.duration_ns <= MAX_NS:
        raise ValueError(
            f"failure {index}: duration_ns must be 0..{MAX_NS} or None, not {failure.duration_ns}"
        )
    for text in (failure.domain, failure.cause):
        if "\n" in text or "\r" in text:
            raise ValueError(f"failure {index}: {text!r} must keep to one line")
