"""What is drawn for a failure beside its instant and machine: kind, cause, and repair time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from castor_traces import ieee_math, random_draws
from castor_traces.failure_stream import MAX_HORIZON_NS
from castor_traces.random_draws import Integers, Words

NS_PER_S: Final = 1e9


def whole_ns(values_ns: NDArray[np.float64]) -> Integers:
    """Round to whole nanoseconds (halves to even), at most `MAX_HORIZON_NS`."""
    rounded: NDArray[np.float64] = np.rint(values_ns)
    return np.minimum(rounded, float(MAX_HORIZON_NS)).astype(np.int64)


def _check_time(value_s: float, what: str, *, least_s: float = 0.0) -> None:
    if not least_s <= value_s <= MAX_HORIZON_NS / NS_PER_S:
        raise ValueError(f"{what} must be {least_s:g} s to 73 years, got {value_s!r} s")


class RepairTime(Protocol):
    """How long a failed machine is out of service."""

    @property
    def mean_s(self) -> float:
        """The mean in seconds."""

    def durations_ns(self, words: Words) -> Integers:
        """Map one 64-bit word a failure to whole nanoseconds."""


@dataclass(frozen=True, slots=True)
class FixedRepair:
    """Every repair takes the same time, in seconds from 0.

    Raises:
        ValueError: if the time is negative or beyond 73 years.
    """

    mean_s: float

    def __post_init__(self) -> None:
        _check_time(self.mean_s, "a fixed repair time")

    def durations_ns(self, words: Words) -> Integers:
        """Map one word a failure to whole nanoseconds; the word is not looked at."""
        return np.full(len(words), round(self.mean_s * NS_PER_S), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class ExponentialRepair:
    """Repair times are exponential with a mean in seconds.

    Raises:
        ValueError: if the mean is negative or beyond 73 years.
    """

    mean_s: float

    def __post_init__(self) -> None:
        _check_time(self.mean_s, "the mean of an exponential repair time")

    def durations_ns(self, words: Words) -> Integers:
        """Map one word a failure to whole nanoseconds."""
        return whole_ns(random_draws.exponential(words) * (self.mean_s * NS_PER_S))


@dataclass(frozen=True, slots=True)
class LognormalRepair:
    """Repair times are log-normal, given by the median and the mean that a log book shows.

    sigma follows from mean = median exp(sigma^2 / 2). Schroeder and Gibson (DSN 2006) find this
    family to fit the repairs of the LANL systems best, with means far above medians.

    Raises:
        ValueError: if the median is not positive, or the mean is below the median.
    """

    median_s: float
    mean_s: float

    def __post_init__(self) -> None:
        _check_time(self.median_s, "the median of a log-normal repair time", least_s=1e-9)
        _check_time(self.mean_s, "the mean of a log-normal repair time")
        if self.mean_s < self.median_s:
            raise ValueError(
                f"the mean of a log-normal repair time ({self.mean_s!r} s) cannot be below its "
                f"median ({self.median_s!r} s); swap them if they were mixed up"
            )

    def durations_ns(self, words: Words) -> Integers:
        """Map one word a failure to whole nanoseconds."""
        ratio = np.array([self.mean_s / self.median_s])
        sigma = float(np.sqrt(2.0 * ieee_math.log(ratio))[0])
        return whole_ns(random_draws.lognormal(words, sigma) * (self.median_s * NS_PER_S))


@dataclass(frozen=True, slots=True)
class UniformRepair:
    """Repair times are uniform between two times in seconds.

    Raises:
        ValueError: if `high_s` is not above `low_s` by a nanosecond at least.
    """

    low_s: float
    high_s: float

    def __post_init__(self) -> None:
        _check_time(self.low_s, "the low end of a uniform repair time")
        _check_time(self.high_s, "the high end of a uniform repair time")
        if round(self.high_s * NS_PER_S) <= round(self.low_s * NS_PER_S):
            raise ValueError(
                f"a uniform repair time needs its high end ({self.high_s!r} s) above its low end "
                f"({self.low_s!r} s)"
            )

    @property
    def mean_s(self) -> float:
        """The mean in seconds."""
        return (self.low_s + self.high_s) / 2

    def durations_ns(self, words: Words) -> Integers:
        """Map one word a failure to whole nanoseconds."""
        low_ns, high_ns = round(self.low_s * NS_PER_S), round(self.high_s * NS_PER_S)
        return random_draws.uniform_ns(words, low_ns, high_ns)


@dataclass(frozen=True, slots=True)
class Cause:
    """A root cause: its name, whether it takes the machine away, and its count out of all."""

    name: str
    hardware: bool
    weight: int


@dataclass(frozen=True, slots=True)
class MarkedFailures:
    """Kind, cause and duration of some failures, in their order (see `FailureBlock`)."""

    hardware: NDArray[np.bool_]
    cause: NDArray[np.int16]
    duration_ns: Integers


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """Kind, cause and repair time of each failure, independent of all others.

    Args:
        hardware_share: the chance, 0 to 1, that a failure takes the machine's hardware; ignored
            where causes are given, since each cause says its kind.
        causes: a table of root causes, each drawn with a chance in proportion to its weight.
        hardware_repair: how long a machine is away after a hardware failure; None: not given, so
            that whoever reads the trace draws it from a model.
        software_repair: the same after a software failure.

    Raises:
        ValueError: if the share is outside 0 .. 1, or a cause has no weight or comes twice.
    """

    hardware_share: float = 1.0
    causes: tuple[Cause, ...] = ()
    hardware_repair: RepairTime | None = None
    software_repair: RepairTime | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.hardware_share <= 1.0:
            raise ValueError(f"hardware_share must be 0 to 1, got {self.hardware_share!r}")
        names = [cause.name for cause in self.causes]
        if len(set(names)) < len(names) or any(cause.weight < 1 for cause in self.causes):
            raise ValueError("give every cause a name of its own and a weight of 1 or more")

    @property
    def cause_names(self) -> tuple[str, ...]:
        """The names that the cause column counts in."""
        return tuple(cause.name for cause in self.causes)

    @property
    def draws_hardware(self) -> bool:
        """Whether a hardware failure can come out at all."""
        if self.causes:
            return any(cause.hardware for cause in self.causes)
        return self.hardware_share > 0.0

    def mark(self, kind_words: Words, repair_words: Words) -> MarkedFailures:
        """Map two words a failure to its kind, cause and duration."""
        count = len(kind_words)
        cause = np.full(count, -1, dtype=np.int16)
        if self.causes:
            totals = np.cumsum([entry.weight for entry in self.causes])
            drawn = random_draws.integers(kind_words, int(totals[-1]))
            cause = np.searchsorted(totals, drawn, side="right").astype(np.int16)
            hardware = np.array([entry.hardware for entry in self.causes], dtype=np.bool_)[cause]
        elif self.hardware_share in (0.0, 1.0):
            hardware = np.full(count, self.hardware_share == 1.0, dtype=np.bool_)
        else:
            hardware = random_draws.uniform(kind_words) < self.hardware_share
        return MarkedFailures(hardware, cause, self._durations_ns(hardware, repair_words))

    def _durations_ns(self, hardware: NDArray[np.bool_], words: Words) -> Integers:
        durations = np.full(len(words), -1, dtype=np.int64)
        for repair, rows in ((self.hardware_repair, hardware), (self.software_repair, ~hardware)):
            if repair is not None:
                durations[rows] = repair.durations_ns(words[rows])
        return durations


#: Every failure takes the machine, for a time that is not given.
HARDWARE_ONLY: Final = Marks()
