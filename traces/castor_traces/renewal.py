"""Machines that fail as renewal processes: the gap to a machine's next failure is drawn anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from castor_traces import ieee_math, random_draws
from castor_traces.failure_stream import MAX_HORIZON_NS, FailureBlock
from castor_traces.marked_machines import (
    Lemons,
    check_horizon,
    check_machines,
    check_repair_given,
    finished,
)
from castor_traces.marks import HARDWARE_ONLY, NS_PER_S, MarkedFailures, Marks, whole_ns
from castor_traces.merge import WhileDown
from castor_traces.random_draws import Integers, MachineDraws, Words

#: Failures expected in one window of time, and so about the rows of one block.
_WINDOW_ROWS: Final = 8192


class Gaps(Protocol):
    """The distribution of the time from a machine's start or repair to its failure."""

    @property
    def mean_s(self) -> float:
        """The mean in seconds."""

    def gaps_s(self, words: Words) -> NDArray[np.float64]:
        """Map one 64-bit word a gap to seconds."""


def _check_mean(mean_s: float) -> None:
    if not 1e-3 <= mean_s <= MAX_HORIZON_NS / NS_PER_S * 1e6:
        raise ValueError(f"the mean gap must be a millisecond or more, in seconds, got {mean_s!r}")


@dataclass(frozen=True, slots=True)
class WeibullGaps:
    """Weibull gaps of a given shape and mean; a shape below 1 makes failures come in clusters.

    Schroeder and Gibson (DSN 2006) fit shapes of 0.7 to 0.8 to the nodes of the LANL systems.

    Raises:
        ValueError: if the shape is not 0.1 to 20, or the mean is below a millisecond.
    """

    shape: float
    mean_s: float

    def __post_init__(self) -> None:
        _check_mean(self.mean_s)
        if not 0.1 <= self.shape <= 20.0:
            raise ValueError(f"the shape of Weibull gaps must be 0.1 to 20, got {self.shape!r}")

    def gaps_s(self, words: Words) -> NDArray[np.float64]:
        """Map one 64-bit word a gap to seconds."""
        scale_s = self.mean_s / ieee_math.gamma(1.0 + 1.0 / self.shape)
        return random_draws.weibull(words, self.shape) * scale_s


@dataclass(frozen=True, slots=True)
class LognormalGaps:
    """Log-normal gaps of a given sigma (of the logarithm) and mean.

    Raises:
        ValueError: if sigma is not 0 to 10, or the mean is below a millisecond.
    """

    sigma: float
    mean_s: float

    def __post_init__(self) -> None:
        _check_mean(self.mean_s)
        if not 0.0 <= self.sigma <= 10.0:
            raise ValueError(f"sigma of log-normal gaps must be 0 to 10, got {self.sigma!r}")

    def gaps_s(self, words: Words) -> NDArray[np.float64]:
        """Map one 64-bit word a gap to seconds."""
        half_square = np.array([self.sigma * self.sigma / -2.0])
        median_s = self.mean_s * float(ieee_math.exp(half_square)[0])
        return random_draws.lognormal(words, self.sigma) * median_s


class _Machines:
    """When each machine fails next, and what its failure is like."""

    def __init__(self, process: RenewalFailures, seed: int, path: tuple[str | int, ...]) -> None:
        self._process = process
        count = process.machines
        self._gaps = MachineDraws(count, seed, *path, "gaps")
        self._kinds = MachineDraws(count, seed, *path, "kinds")
        self._repairs = MachineDraws(count, seed, *path, "repairs")
        self._speed = np.ones(count)
        if process.lemons:
            order = process.lemons.first_lemons_then_others(count, seed, path)
            self._speed[order[: process.lemons.count(count)]] = process.lemons.factor
        everyone = np.arange(count, dtype=np.int64)
        start_ns = -round(process.warm_up_s * NS_PER_S)
        self.next_ns = self._gaps_ns(everyone) + np.int64(start_ns)

    def _gaps_ns(self, machines: Integers) -> Integers:
        gaps_s = self._process.gaps.gaps_s(self._gaps.words(machines)) / self._speed[machines]
        # At least a nanosecond: a machine does not fail twice at one instant.
        return np.maximum(whole_ns(gaps_s * NS_PER_S), 1)

    def fail(self, machines: Integers) -> MarkedFailures:
        """Mark the next failure of each of these machines and move on to the one after it."""
        process = self._process
        marked = process.marks.mark(self._kinds.words(machines), self._repairs.words(machines))
        following = self.next_ns[machines] + self._gaps_ns(machines)
        if process.while_down == "none":
            following += np.where(marked.hardware, np.maximum(marked.duration_ns, 0), 0)
        # Far beyond every horizon all instants are alike; this keeps the next sum within int64.
        self.next_ns[machines] = np.minimum(following, 2 * MAX_HORIZON_NS)
        return marked


@dataclass(frozen=True, slots=True)
class RenewalFailures:
    """Every machine fails by gaps drawn anew each time, independent of all other machines.

    A machine's failures hang on the seed and its own number only: a larger cluster keeps them.

    Args:
        machines: how many machines.
        gaps: the time from one failure of a machine to its next.
        lemons: machines whose gaps are shorter by a factor; None: there are none.
        warm_up_s: how long the machines have been running at time 0, in seconds. At 0 they all
            are new at once, and the rate takes some mean gaps to settle at 1 / mean.
        marks: kind, cause and repair time of each failure.
        while_down: with "none" a gap starts at the end of the repair before it (an alternating
            renewal process); with "keep" it starts at the failure.

    Raises:
        ValueError: if a parameter is out of range.
    """

    machines: int
    gaps: Gaps
    lemons: Lemons | None = None
    warm_up_s: float = 0.0
    marks: Marks = HARDWARE_ONLY
    while_down: WhileDown = "keep"

    def __post_init__(self) -> None:
        check_machines(self.machines)
        check_repair_given(self.while_down, self.marks)
        if not 0.0 <= self.warm_up_s <= MAX_HORIZON_NS / NS_PER_S:
            raise ValueError(f"warm_up_s must be 0 s to 73 years, got {self.warm_up_s!r}")

    @property
    def causes(self) -> tuple[str, ...]:
        """The names that `FailureBlock.cause` counts in."""
        return self.marks.cause_names

    def blocks(self, seed: int, horizon_ns: int, *path: str | int) -> Iterator[FailureBlock]:
        """Yield the failures in [0, horizon_ns), in order (see `FailureProcess.blocks`)."""
        check_horizon(horizon_ns)
        rows = self._all_blocks(seed, horizon_ns, path)
        # The machines' own clocks stand still during repairs: nothing is left to filter.
        return finished(rows, self.machines, "keep")

    def _all_blocks(
        self, seed: int, horizon_ns: int, path: tuple[str | int, ...]
    ) -> Iterator[FailureBlock]:
        machines = _Machines(self, seed, path)
        fastest = self.lemons.factor if self.lemons else 1.0
        window_ns = self.gaps.mean_s * NS_PER_S * _WINDOW_ROWS / self.machines
        window_ns = max(1, int(min(window_ns / max(1.0, fastest), float(MAX_HORIZON_NS))))
        while (first_ns := int(machines.next_ns.min())) < horizon_ns:
            end_ns = min(first_ns + window_ns, horizon_ns)
            if first_ns < 0:
                end_ns = min(end_ns, 0)  # the warm-up is not shown
            block = _window(machines, end_ns)
            if first_ns >= 0:
                yield block


def _window(machines: _Machines, end_ns: int) -> FailureBlock:
    """Let all machines fail up to `end_ns` and return their failures in order."""
    times: list[Integers] = []
    failing: list[Integers] = []
    marks: list[MarkedFailures] = []
    due = np.flatnonzero(machines.next_ns < end_ns)
    while due.size:
        times.append(machines.next_ns[due])
        failing.append(due)
        marks.append(machines.fail(due))
        due = due[machines.next_ns[due] < end_ns]
    time_ns, machine = np.concatenate(times), np.concatenate(failing)
    order = np.lexsort((machine, time_ns))
    return FailureBlock(
        time_ns=time_ns[order],
        machine=machine[order].astype(np.int32),
        hardware=np.concatenate([part.hardware for part in marks])[order],
        duration_ns=np.concatenate([part.duration_ns for part in marks])[order],
        domain=np.full(len(order), -1, dtype=np.int32),
        cause=np.concatenate([part.cause for part in marks])[order],
    )
