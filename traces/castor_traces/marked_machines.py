"""What the failure processes share: checks, Poisson instants, lemons, and marked blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np

from castor_traces.failure_stream import BLOCK_ROWS, MAX_HORIZON_NS, FailureBlock
from castor_traces.marks import Marks
from castor_traces.merge import WhileDown, check_while_down, without_failures_while_down
from castor_traces.random_draws import Draws, Integers, Words
from castor_traces.trace import MAX_MACHINES


def check_horizon(horizon_ns: int) -> None:
    """Refuse a horizon whose nanoseconds could overflow.

    Raises:
        ValueError: if it is not 0 to `MAX_HORIZON_NS` (73 years).
    """
    if not 0 <= horizon_ns <= MAX_HORIZON_NS:
        raise ValueError(f"a horizon must be 0 to 73 years in nanoseconds, got {horizon_ns}")


def check_machines(machines: int) -> None:
    """Refuse an impossible number of machines.

    Raises:
        ValueError: if it is not 1 to 2^31 - 1.
    """
    if not 1 <= machines <= MAX_MACHINES:
        raise ValueError(f"machines must be 1 to {MAX_MACHINES}, got {machines}")


def check_rate(rate_per_s: float, what: str) -> None:
    """Refuse a rate that no sum of nanoseconds can follow.

    Raises:
        ValueError: if it is negative, not a number, or above a million a second.
    """
    if not 0.0 <= rate_per_s <= 1e6:
        raise ValueError(f"{what} must be 0 to a million per second, got {rate_per_s!r}")


def check_repair_given(while_down: WhileDown, marks: Marks) -> None:
    """Refuse "no failures while down" where nothing says how long a machine is down.

    Raises:
        ValueError: if `while_down` is misspelt, or is "none" without a hardware repair time.
    """
    check_while_down(while_down)
    if while_down == "none" and marks.hardware_repair is None and marks.draws_hardware:
        raise ValueError('while_down="none" needs a hardware repair time; give one in the marks')


@dataclass(frozen=True, slots=True)
class Lemons:
    """Machines that fail again and again: a share of all machines, drawn by the seed.

    Args:
        share: how many of the machines are lemons, 0 to 1, rounded to whole machines.
        factor: how many times as often a lemon fails as an ordinary machine, above 0.

    Raises:
        ValueError: if the share or the factor is out of range.
    """

    share: float
    factor: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0 or not 0.0 < self.factor <= 1e6:
            raise ValueError(
                f"lemons need a share of 0 to 1 and a factor above 0 and up to a million, got "
                f"{self.share!r} and {self.factor!r}"
            )

    def count(self, machines: int) -> int:
        """Return how many of the machines are lemons."""
        return round(self.share * machines)

    def first_lemons_then_others(
        self, machines: int, seed: int, path: tuple[str | int, ...]
    ) -> Integers:
        """Return all machine numbers, the `count` lemons first."""
        return Draws(seed, *path, "lemons").permutation(machines)


def poisson_times_ns(draws: Draws, mean_gap_ns: float, horizon_ns: int) -> Iterator[Integers]:
    """Yield the instants of a Poisson process in [0, horizon_ns), strictly increasing.

    Gaps are rounded to whole nanoseconds, at least one: their sums are then exact.
    """
    last_ns = 0
    while True:
        expected = (horizon_ns - last_ns) / mean_gap_ns
        rows = min(BLOCK_ROWS, ceil(expected + 6.0 * sqrt(expected)) + 16)
        gaps = np.minimum(draws.exponential(rows) * mean_gap_ns, float(MAX_HORIZON_NS))
        gaps_ns = np.maximum(np.rint(gaps), 1.0).astype(np.int64)
        times = np.cumsum(gaps_ns) + last_ns
        # A sum that wraps turns negative at once (no gap exceeds 2^61), a huge unsigned number.
        past = times.view(np.uint64) >= np.uint64(horizon_ns)
        if bool(past.any()):
            yield times[: int(np.argmax(past))]
            return
        yield times
        last_ns = int(times[-1])


class MarkedMachines:
    """The streams of draws that one process takes machines, kinds and repairs from."""

    __slots__ = ("_kinds", "_machines", "_marks", "_repairs")

    def __init__(self, marks: Marks, seed: int, path: tuple[str | int, ...]) -> None:
        self._marks = marks
        self._machines = Draws(seed, *path, "machines")
        self._kinds = Draws(seed, *path, "kinds")
        self._repairs = Draws(seed, *path, "repairs")

    def any_of(self, count: int, machines: int) -> Integers:
        """Draw `count` machines, all equally likely."""
        return self._machines.integers(count, machines)

    def machine_words(self, count: int) -> Words:
        """Draw `count` words of the stream that chooses machines."""
        return self._machines.words(count)

    def block(self, times: Integers, machines: Integers) -> FailureBlock:
        """Return machines that fail one by one at these times."""
        marked = self._marks.mark(self._kinds.words(len(times)), self._repairs.words(len(times)))
        return FailureBlock(
            time_ns=times,
            machine=machines.astype(np.int32),
            hardware=marked.hardware,
            duration_ns=marked.duration_ns,
            domain=np.full(len(times), -1, dtype=np.int32),
            cause=marked.cause,
        )

    def domain_block(
        self, times: Integers, domains: Integers, size: int, machines: int
    ) -> FailureBlock:
        """Return domains that fail whole: all their machines alike, at one instant."""
        marked = self._marks.mark(self._kinds.words(len(times)), self._repairs.words(len(times)))
        members = np.minimum((domains + 1) * size, machines) - domains * size
        event = np.repeat(np.arange(len(times)), members)
        # 0, 1, 2, ... within each event: the running number less that of the event's first row.
        within = np.arange(len(event)) - np.repeat(np.cumsum(members) - members, members)
        return FailureBlock(
            time_ns=times[event],
            machine=((domains * size)[event] + within).astype(np.int32),
            hardware=marked.hardware[event],
            duration_ns=marked.duration_ns[event],
            domain=domains[event].astype(np.int32),
            cause=marked.cause[event],
        )


def finished(
    rows: Iterator[FailureBlock], machines: int, while_down: WhileDown
) -> Iterator[FailureBlock]:
    """Leave out empty blocks and, if asked, failures of machines that are down."""
    filled = (block for block in rows if len(block))
    if while_down == "none":
        return without_failures_while_down(filled, machines)
    return filled
