"""How the tests of the simulator build failures, run the engines and compare means with theory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pytest

from castor_sim import jump_engine
from castor_sim.exact_engine import ExactEngine
from castor_sim.simpy_engine import SimpyEngine
from castor_sim.strategy_costs import NEVER_NS, StrategyCosts
from castor_sim.strikes import Strikes
from castor_sim.tally import Operations, Tally
from castor_traces.failure_stream import FailureProcess

Row = tuple[int, int, int, int]
Replicas = Sequence[Sequence[int]]


def _one_block(rows: Iterable[Row]) -> list[Strikes]:
    """Make strikes of (time_ns, machine, hardware, restore_ns); rows of one instant keep order."""
    ordered = sorted(rows, key=lambda row: row[0])
    if not ordered:
        return []
    time_ns, machine, hardware, restore_ns = zip(*ordered, strict=True)
    return [
        Strikes(
            np.array(time_ns, np.int64),
            np.array(machine, np.int32),
            np.array(hardware, np.int8),
            np.array(restore_ns, np.int64),
        )
    ]


def _from_process(process: FailureProcess, seed: int, horizon_ns: int) -> Iterator[Strikes]:
    """Pass the blocks of a generator on; a failure's duration is the machine's absence."""
    for block in process.blocks(seed, horizon_ns):
        yield Strikes(
            block.time_ns, block.machine, block.hardware.astype(np.int8), block.duration_ns
        )


def _jump(
    profile: StrategyCosts,
    operations: Operations,
    replicas: Replicas,
    strikes: Iterable[Strikes],
    *,
    horizon_ns: int = NEVER_NS,
    target_iterations: int = 0,
    sources: list[int] | None = None,
) -> Tally:
    tally = jump_engine.run(
        profile,
        operations,
        jump_engine.replica_array(replicas),
        strikes,
        horizon_ns=horizon_ns,
        target_iterations=target_iterations,
        sources=sources,
    )
    tally.check()
    return tally


def _all_three(
    profile: StrategyCosts,
    operations: Operations,
    replicas: Replicas,
    rows: Iterable[Row],
    *,
    horizon_ns: int = NEVER_NS,
    target_iterations: int = 0,
) -> tuple[Tally, list[int]]:
    """Run all engines on the same rows; return what they agree on, tally and sources."""
    strikes = _one_block(rows)
    sources: list[int] = []
    tally = _jump(
        profile,
        operations,
        replicas,
        strikes,
        horizon_ns=horizon_ns,
        target_iterations=target_iterations,
        sources=sources,
    )
    for kind in (SimpyEngine, ExactEngine):
        engine = kind(
            profile,
            operations,
            replicas,
            strikes,
            horizon_ns=horizon_ns,
            target_iterations=target_iterations,
            record_sources=True,
        )
        assert engine.run() == tally, kind.__name__
        assert engine.sources == sources, kind.__name__
    return tally, sources


def _assert_mean(
    values: Sequence[float], expected: float, *, precision: float, bias: float = 0.0
) -> None:
    """Hold the mean of independent replications to theory.

    The tolerance is four standard errors, computed from the replications: with some 40 of them a
    right model misses it once in 3,000 tests, and the seeds are fixed, so that it either does for
    ever or never. `precision` is the largest relative standard error at which the test still
    means something: a model that is wrong by more than five times as much is found out. `bias`
    is what theory leaves out, in the unit of the values, argued where it is given.
    """
    count = len(values)
    mean = math.fsum(values) / count
    error = float(np.std(values, ddof=1)) / math.sqrt(count)
    assert error <= precision * abs(expected), f"standard error {error} is too large for a test"
    assert abs(mean - expected) <= 4 * error + bias, f"{mean} +- {error}, theory says {expected}"


@pytest.fixture(scope="session")
def one_block() -> Callable[[Iterable[Row]], list[Strikes]]:
    return _one_block


@pytest.fixture(scope="session")
def from_process() -> Callable[[FailureProcess, int, int], Iterator[Strikes]]:
    return _from_process


@pytest.fixture(scope="session")
def jump() -> Callable[..., Tally]:
    return _jump


@pytest.fixture(scope="session")
def all_three() -> Callable[..., tuple[Tally, list[int]]]:
    return _all_three


@pytest.fixture(scope="session")
def assert_mean() -> Callable[..., None]:
    return _assert_mean
