"""Random failure processes: what fails when, in a cluster of which only rates are known.

Each process is a frozen configuration with `.blocks(seed, horizon_ns)`, a `FailureProcess`. The
same seed gives the same failures on every machine, and a longer horizon only adds to their end.
`RenewalFailures` and `MergedFailures` have modules of their own and are offered here as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from castor_traces import ieee_math
from castor_traces.failure_stream import BLOCK_ROWS, MAX_HORIZON_NS, FailureBlock
from castor_traces.marked_machines import (
    Lemons,
    MarkedMachines,
    check_horizon,
    check_machines,
    check_rate,
    check_repair_given,
    finished,
    poisson_times_ns,
)
from castor_traces.marks import HARDWARE_ONLY, NS_PER_S, Marks, whole_ns
from castor_traces.merge import MergedFailures, WhileDown
from castor_traces.random_draws import Draws, integers
from castor_traces.renewal import LognormalGaps, RenewalFailures, WeibullGaps

__all__ = [
    "DomainFailures",
    "EarlyFailures",
    "Lemons",
    "LognormalGaps",
    "Marks",
    "MergedFailures",
    "PoissonFailures",
    "RegularFailures",
    "RenewalFailures",
    "WeibullGaps",
]

DAY_NS: Final = 86_400 * 10**9

# Unit exponentials are summed as integers in units of 2^-32: sums of floats would hang on order.
_FIXED_POINT: Final = 2.0**32


@dataclass(frozen=True, slots=True)
class PoissonFailures:
    """Every machine fails as a Poisson process; all of them superposed in one stream.

    Args:
        machines: how many machines.
        rate_per_s: failures of one ordinary machine per second (while it is up).
        lemons: machines that fail more often than that; None: there are none.
        marks: kind, cause and repair time of each failure.
        while_down: whether a machine may fail again during its repair. With "none" its up times
            are exponential with mean 1 / rate, so that its availability is MTBF / (MTBF + MTTR).

    Raises:
        ValueError: if a parameter is out of range.
    """

    machines: int
    rate_per_s: float
    lemons: Lemons | None = None
    marks: Marks = HARDWARE_ONLY
    while_down: WhileDown = "keep"

    def __post_init__(self) -> None:
        check_machines(self.machines)
        check_rate(self.rate_per_s, "the failure rate of a machine")
        check_repair_given(self.while_down, self.marks)

    @property
    def causes(self) -> tuple[str, ...]:
        """The names that `FailureBlock.cause` counts in."""
        return self.marks.cause_names

    def blocks(self, seed: int, horizon_ns: int, *path: str | int) -> Iterator[FailureBlock]:
        """Yield the failures in [0, horizon_ns), in order (see `FailureProcess.blocks`)."""
        check_horizon(horizon_ns)
        rows = self._all_blocks(seed, horizon_ns, path)
        return finished(rows, self.machines, self.while_down)

    def _all_blocks(
        self, seed: int, horizon_ns: int, path: tuple[str | int, ...]
    ) -> Iterator[FailureBlock]:
        lemons = self.lemons.count(self.machines) if self.lemons else 0
        factor = self.lemons.factor if self.lemons else 1.0
        lemon_weight = lemons * factor
        total_weight = lemon_weight + (self.machines - lemons)
        if self.rate_per_s * total_weight == 0.0:
            return
        # Where all machines are of one class, none need be told apart.
        order = (
            self.lemons.first_lemons_then_others(self.machines, seed, path)
            if self.lemons and 0 < lemons < self.machines
            else None
        )
        chooser = Draws(seed, *path, "lemon or not")
        marker = MarkedMachines(self.marks, seed, path)
        mean_gap_ns = NS_PER_S / (self.rate_per_s * total_weight)
        for times in poisson_times_ns(Draws(seed, *path, "gaps"), mean_gap_ns, horizon_ns):
            if order is None:
                machines = marker.any_of(len(times), self.machines)
            else:
                lemon = chooser.uniform(len(times)) * total_weight < lemon_weight
                below = np.where(lemon, lemons, self.machines - lemons)
                drawn = integers(marker.machine_words(len(times)), below)
                machines = order[drawn + np.where(lemon, 0, lemons)]
            yield marker.block(times, machines)


@dataclass(frozen=True, slots=True)
class RegularFailures:
    """Exactly F failures a day: one in each slot of 1/F day, uniform within it, on any machine.

    This is the assumption behind the closed form of the paper's Fig. 15: the number of failures is
    fixed, and a failure falls anywhere between two checkpoints with equal chance.

    Args:
        machines: how many machines.
        failures_per_day: failures of the whole cluster a day.
        marks: kind, cause and repair time of each failure.
        while_down: whether a machine may fail again during its repair ("none" leaves such
            failures out, so that there may be fewer than F a day).

    Raises:
        ValueError: if a parameter is out of range.
    """

    machines: int
    failures_per_day: float
    marks: Marks = HARDWARE_ONLY
    while_down: WhileDown = "keep"

    def __post_init__(self) -> None:
        check_machines(self.machines)
        check_rate(self.failures_per_day / 86_400, "the failure rate of the cluster")
        check_repair_given(self.while_down, self.marks)

    @property
    def causes(self) -> tuple[str, ...]:
        """The names that `FailureBlock.cause` counts in."""
        return self.marks.cause_names

    def blocks(self, seed: int, horizon_ns: int, *path: str | int) -> Iterator[FailureBlock]:
        """Yield the failures in [0, horizon_ns), in order (see `FailureProcess.blocks`)."""
        check_horizon(horizon_ns)
        rows = self._all_blocks(seed, horizon_ns, path)
        return finished(rows, self.machines, self.while_down)

    def _all_blocks(
        self, seed: int, horizon_ns: int, path: tuple[str | int, ...]
    ) -> Iterator[FailureBlock]:
        # Below one failure in 73 years, no slot ends within any horizon; nothing fails.
        if self.failures_per_day * MAX_HORIZON_NS < DAY_NS:
            return
        slot_ns = round(DAY_NS / self.failures_per_day)
        offsets = Draws(seed, *path, "gaps")
        marker = MarkedMachines(self.marks, seed, path)
        start_ns = 0
        while start_ns < horizon_ns:
            rows = min(BLOCK_ROWS, (horizon_ns - start_ns - 1) // slot_ns + 1)
            times = np.arange(rows, dtype=np.int64) * slot_ns + start_ns
            times += offsets.uniform_ns(rows, 0, slot_ns)
            times = times[: int(np.searchsorted(times, horizon_ns, side="left"))]
            yield marker.block(times, marker.any_of(len(times), self.machines))
            start_ns += rows * slot_ns


@dataclass(frozen=True, slots=True)
class EarlyFailures:
    """Infant mortality of a new cluster: failures that grow rarer (or more frequent) with age.

    A power-law process (Crow 1974): up to time t a machine has failed expected (t / within)^shape
    times on average, so that its rate is a Weibull hazard. Merged with `PoissonFailures` it gives
    the falling and the flat part of the bathtub; with a shape above 1, the rising end.

    Args:
        machines: how many machines, all of age 0 at the start.
        shape: below 1 the rate falls with age, above 1 it rises; 0.05 to 20.
        expected_per_machine: mean number of such failures of a machine within `within_s`.
        within_s: seconds.
        marks: kind, cause and repair time of each failure.
        while_down: whether a machine may fail again during its repair.

    Raises:
        ValueError: if a parameter is out of range.
    """

    machines: int
    shape: float
    expected_per_machine: float
    within_s: float
    marks: Marks = HARDWARE_ONLY
    while_down: WhileDown = "keep"

    def __post_init__(self) -> None:
        check_machines(self.machines)
        check_repair_given(self.while_down, self.marks)
        if not 0.05 <= self.shape <= 20.0:
            raise ValueError(f"the shape of early failures must be 0.05 to 20, got {self.shape!r}")
        if self.expected_per_machine != 0.0 and not 1e-12 <= self.expected_per_machine <= 1e6:
            raise ValueError(
                "expected_per_machine must be 0, or 1e-12 to a million, got "
                f"{self.expected_per_machine!r}"
            )
        if not 1e-6 <= self.within_s <= MAX_HORIZON_NS / NS_PER_S:
            raise ValueError(f"within_s must be a microsecond to 73 years, got {self.within_s!r}")

    @property
    def causes(self) -> tuple[str, ...]:
        """The names that `FailureBlock.cause` counts in."""
        return self.marks.cause_names

    def blocks(self, seed: int, horizon_ns: int, *path: str | int) -> Iterator[FailureBlock]:
        """Yield the failures in [0, horizon_ns), in order (see `FailureProcess.blocks`)."""
        check_horizon(horizon_ns)
        rows = self._all_blocks(seed, horizon_ns, path)
        return finished(rows, self.machines, self.while_down)

    def _all_blocks(
        self, seed: int, horizon_ns: int, path: tuple[str | int, ...]
    ) -> Iterator[FailureBlock]:
        total = self.machines * self.expected_per_machine
        if total == 0.0 or horizon_ns == 0:
            return
        gaps = Draws(seed, *path, "gaps")
        marker = MarkedMachines(self.marks, seed, path)
        rows = 64  # grows: the count up to the horizon is a power that may be tiny or vast
        operations, last_ns = 0, 0
        while True:
            # Unit exponentials E_1 + ... + E_n are the cumulated rate at the n-th failure; its
            # inverse is the instant.
            units = np.cumsum(whole_ns(gaps.exponential(rows) * _FIXED_POINT)) + operations
            operations = int(units[-1])
            ratio = np.maximum(units, 1) / (_FIXED_POINT * total)
            exact_ns = ieee_math.exp(ieee_math.log(ratio) / self.shape) * (self.within_s * NS_PER_S)
            # Neighbours may swap by the last bit of the power.
            times = np.maximum(np.maximum.accumulate(whole_ns(exact_ns)), last_ns)
            last_ns = int(times[-1])
            times = times[: int(np.searchsorted(times, horizon_ns, side="left"))]
            yield marker.block(times, marker.any_of(len(times), self.machines))
            if last_ns >= horizon_ns:
                return
            rows = min(BLOCK_ROWS, rows * 4)


@dataclass(frozen=True, slots=True)
class DomainFailures:
    """Failure domains (racks, switches, power feeds) that go down whole, as Poisson processes.

    Machines d size .. (d + 1) size - 1 form domain d; the last domain may be smaller. A failure
    is one row for each machine of the domain, all at one instant, with one kind, cause and repair.

    Args:
        machines: how many machines.
        domain_size: machines in a domain.
        rate_per_s: failures of one domain per second.
        marks: kind, cause and repair time of each failure.
        while_down: with "none", machines that are down already are left out of the rows.

    Raises:
        ValueError: if a parameter is out of range.
    """

    machines: int
    domain_size: int
    rate_per_s: float
    marks: Marks = HARDWARE_ONLY
    while_down: WhileDown = "keep"

    def __post_init__(self) -> None:
        check_machines(self.machines)
        check_rate(self.rate_per_s, "the failure rate of a domain")
        check_repair_given(self.while_down, self.marks)
        if not 1 <= self.domain_size <= self.machines:
            raise ValueError(
                f"domain_size must be 1 to {self.machines} (the machines), got {self.domain_size}"
            )

    @property
    def domains(self) -> int:
        """How many domains there are."""
        return -(-self.machines // self.domain_size)

    @property
    def causes(self) -> tuple[str, ...]:
        """The names that `FailureBlock.cause` counts in."""
        return self.marks.cause_names

    def blocks(self, seed: int, horizon_ns: int, *path: str | int) -> Iterator[FailureBlock]:
        """Yield the failures in [0, horizon_ns), in order (see `FailureProcess.blocks`)."""
        check_horizon(horizon_ns)
        rows = self._all_blocks(seed, horizon_ns, path)
        return finished(rows, self.machines, self.while_down)

    def _all_blocks(
        self, seed: int, horizon_ns: int, path: tuple[str | int, ...]
    ) -> Iterator[FailureBlock]:
        if self.rate_per_s == 0.0:
            return
        marker = MarkedMachines(self.marks, seed, path)
        mean_gap_ns = NS_PER_S / (self.rate_per_s * self.domains)
        # A domain is many rows: pass its events on in portions of one block's rows.
        portion = max(1, BLOCK_ROWS // self.domain_size)
        for times in poisson_times_ns(Draws(seed, *path, "gaps"), mean_gap_ns, horizon_ns):
            for start in range(0, len(times), portion):
                part = times[start : start + portion]
                domains = marker.any_of(len(part), self.domains)
                yield marker.domain_block(part, domains, self.domain_size, self.machines)
