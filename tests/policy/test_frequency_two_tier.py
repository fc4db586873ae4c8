"""The storage interval behind memory checkpoints: against Daly, the paper, and a simulated run."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import fields, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castor_policy.frequency import expected_slowdown
from castor_policy.frequency_two_tier import (
    TwoTier,
    optimal_storage_interval_s,
    storage_fallback_rate_per_s,
    two_tier_effective_ratio,
)
from castor_policy.published import gemini_effective_ratio

deterministic = settings(
    derandomize=True, deadline=None, max_examples=2 * settings.default.max_examples
)

DAY_S = 86_400.0

GPT2_100B = TwoTier(
    iteration_s=62.0,
    failure_rate_per_s=2.0 / DAY_S,
    memory_survival_probability=0.933,
    downtime_s=15.0 + 162.0 + 253.0,
    memory_checkpoint_s=62.0,
    memory_retrieval_s=3.0,
    storage_stall_s=81.0,
    storage_checkpoint_s=480.0,
    storage_retrieval_s=480.0,
)

jobs = st.builds(
    TwoTier,
    iteration_s=st.floats(0.1, 500.0),
    failure_rate_per_s=st.floats(-9.0, -2.5).map(lambda power: 10.0**power),
    memory_survival_probability=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.0, 1.0)),
    downtime_s=st.floats(0.0, 2000.0),
    memory_checkpoint_s=st.floats(0.0, 600.0),
    memory_retrieval_s=st.floats(0.0, 100.0),
    storage_stall_s=st.one_of(st.just(0.0), st.floats(0.0, 500.0)),
    storage_checkpoint_s=st.floats(0.0, 2000.0),
    storage_retrieval_s=st.floats(0.0, 2000.0),
)


@given(jobs, st.floats(-4.0, 6.0))
@deterministic
def test_no_allowed_interval_beats_the_optimum(job: TwoTier, power: float) -> None:
    best_s = optimal_storage_interval_s(job)
    best = two_tier_effective_ratio(job, best_s)
    anchor_s = best_s if math.isfinite(best_s) else 1e4
    other_s = max(job.min_storage_interval_s, anchor_s * 10.0**power)
    assert two_tier_effective_ratio(job, other_s) <= best * (1 + 1e-12)
    assert 0.0 <= best <= 1.0


@given(jobs)
@deterministic
def test_a_grid_of_intervals_finds_nothing_better(job: TwoTier) -> None:
    best = two_tier_effective_ratio(job, optimal_storage_interval_s(job))
    shortest_s = job.min_storage_interval_s
    grid = [two_tier_effective_ratio(job, shortest_s * 1.2**step) for step in range(80)]
    assert max(grid) <= best * (1 + 1e-12)
    peak = grid.index(max(grid))
    rising, falling = grid[: peak + 1], grid[peak:]
    assert all(a <= b * (1 + 1e-12) for a, b in pairwise(rising))
    assert all(a * (1 + 1e-12) >= b for a, b in pairwise(falling))


@given(jobs, st.floats(1.0, 100.0))
@deterministic
def test_without_memory_it_is_daly_s_expected_run_time(job: TwoTier, factor: float) -> None:
    job = replace(job, memory_survival_probability=0.0, storage_checkpoint_s=0.0)
    interval_s = job.min_storage_interval_s * factor
    slowdown = expected_slowdown(
        interval_s, job.storage_stall_s, job.storage_recovery_s, 1.0 / job.failure_rate_per_s
    )
    assert two_tier_effective_ratio(job, interval_s) == pytest.approx(
        1.0 / slowdown, rel=1e-9, abs=0
    )


@given(jobs, st.floats(1.0, 100.0))
@deterministic
def test_where_memory_always_saves_the_run_storage_only_costs(job: TwoTier, factor: float) -> None:
    job = replace(job, memory_survival_probability=1.0)
    interval_s = job.min_storage_interval_s * factor
    recovered = math.exp(-job.failure_rate_per_s * job.memory_recovery_s)
    share = interval_s / (interval_s + job.storage_stall_s)
    assert two_tier_effective_ratio(job, interval_s) == pytest.approx(
        recovered * share, rel=1e-12, abs=0
    )
    assert optimal_storage_interval_s(job) == math.inf
    assert two_tier_effective_ratio(job, math.inf) == pytest.approx(recovered, rel=1e-12, abs=0)


@pytest.mark.parametrize("failures_per_day", range(9))
def test_it_is_the_paper_s_line_where_that_holds(failures_per_day: int) -> None:
    """Fig. 15a, Gemini: software failures only. The line is the first order, cut to 9 minutes."""
    job = replace(
        GPT2_100B, failure_rate_per_s=failures_per_day / DAY_S, memory_survival_probability=1.0
    )
    ratio = two_tier_effective_ratio(job, math.inf)
    assert ratio == pytest.approx(gemini_effective_ratio(failures_per_day), abs=0.003)


def test_no_failures_waste_only_the_stall() -> None:
    job = replace(GPT2_100B, failure_rate_per_s=0.0)
    assert optimal_storage_interval_s(job) == math.inf
    assert two_tier_effective_ratio(job, math.inf) == 1.0
    assert two_tier_effective_ratio(job, 480.0) == pytest.approx(480.0 / 561.0)


def test_the_rule_behind_memory_checkpoints() -> None:
    """About sqrt(2 s/theta): with 6.7 % of 2 failures a day, far longer than Young would have."""
    theta = storage_fallback_rate_per_s(GPT2_100B)
    assert theta == pytest.approx(2.0 / DAY_S * 0.067, rel=0.02)
    assert theta > 2.0 / DAY_S * 0.067
    interval_s = optimal_storage_interval_s(GPT2_100B)
    assert interval_s == pytest.approx(math.sqrt(2 * 81.0 / theta), rel=0.02)
    assert 2.7 < interval_s / 3600 < 3.0


@given(jobs)
@deterministic
def test_eq_2_bounds_the_interval(job: TwoTier) -> None:
    shortest_s = job.min_storage_interval_s
    assert optimal_storage_interval_s(job) >= shortest_s
    assert shortest_s + job.storage_stall_s >= job.storage_checkpoint_s * (1 - 1e-12)
    assert shortest_s >= job.iteration_s
    if storage_fallback_rate_per_s(job) > 0.0:
        free = replace(job, storage_stall_s=0.0)
        assert optimal_storage_interval_s(free) == free.min_storage_interval_s


def test_memory_checkpoints_slower_than_an_iteration_are_taken_less_often() -> None:
    job = replace(GPT2_100B, iteration_s=10.0, memory_checkpoint_s=25.0)
    assert job.memory_interval_s == 30.0
    assert job.memory_rollback_s == 40.0
    assert GPT2_100B.memory_rollback_s == 1.5 * 62.0


class Run:
    """One training run in wall time, event by event, by the rules in the module's head."""

    def __init__(self, job: TwoTier, interval_s: float, seed: int) -> None:
        self.job, self.interval_s = job, interval_s
        self.draw = random.Random(seed)
        self.wall_s = self.up_s = 0.0
        self.work_s = self.durable_work_s = 0.0
        self.in_segment_s = 0.0
        self.in_flight: list[tuple[float, float]] = []  # (up time when complete, work it holds)
        self.draw_failure()

    def draw_failure(self) -> None:
        self.next_failure_s = self.wall_s + self.draw.expovariate(self.job.failure_rate_per_s)

    def passes(self, length_s: float) -> bool:
        """Let time pass, until a failure at most; say whether there was none."""
        if self.wall_s + length_s < self.next_failure_s:
            self.wall_s += length_s
            return True
        self.wall_s = self.next_failure_s
        self.draw_failure()
        return False

    def step(self) -> None:
        """Be up until the next event: work done, stall over, checkpoint complete, or failure."""
        working = self.in_segment_s < self.interval_s
        period_s = self.interval_s + self.job.storage_stall_s
        ahead_s = (self.interval_s if working else period_s) - self.in_segment_s
        completes_first = bool(self.in_flight) and self.in_flight[0][0] - self.up_s < ahead_s
        if completes_first:
            ahead_s = max(0.0, self.in_flight[0][0] - self.up_s)
        started_s = self.wall_s
        passed = self.passes(ahead_s)
        elapsed_s = ahead_s if passed else self.wall_s - started_s
        self.up_s += elapsed_s
        self.in_segment_s += elapsed_s
        self.work_s += elapsed_s if working else 0.0
        if not passed:
            self.recover()
        elif completes_first:
            self.durable_work_s = self.in_flight.pop(0)[1]
        elif working:
            self.in_segment_s = self.interval_s
        else:
            self.in_segment_s = 0.0
            self.in_flight.append((self.up_s + self.job.storage_checkpoint_s, self.work_s))

    def recover(self) -> None:
        while self.draw.random() < self.job.memory_survival_probability:
            if self.passes(self.job.memory_recovery_s):
                return
        while not self.passes(self.job.storage_recovery_s):
            pass
        self.work_s = self.durable_work_s
        self.in_segment_s = 0.0
        self.in_flight.clear()


@pytest.mark.parametrize(
    ("job", "interval_s"),
    [
        (replace(GPT2_100B, failure_rate_per_s=1 / 1500.0), 700.0),
        (replace(GPT2_100B, failure_rate_per_s=1 / 900.0, memory_survival_probability=0.5), 480.0),
        (replace(GPT2_100B, failure_rate_per_s=1 / 3000.0, memory_survival_probability=0.0), 399.0),
        (replace(GPT2_100B, failure_rate_per_s=1 / 700.0, memory_survival_probability=0.9), 2500.0),
    ],
)
def test_a_simulated_run_has_the_ratio(job: TwoTier, interval_s: float) -> None:
    """Failures so frequent that they meet recoveries, transfers and stalls all the time."""
    ratios = []
    for seed in range(24):
        run = Run(job, interval_s, seed)
        while run.wall_s < 1500.0 / job.failure_rate_per_s:
            run.step()
        ratios.append(run.work_s / run.wall_s)
    error = statistics.stdev(ratios) / math.sqrt(len(ratios))
    expected = two_tier_effective_ratio(job, interval_s)
    assert error < 0.02 * expected
    assert statistics.fmean(ratios) == pytest.approx(expected, abs=4 * error)


def test_hopeless_jobs_have_ratio_zero() -> None:
    for probability in (0.0, 0.5, 1.0):
        job = replace(GPT2_100B, failure_rate_per_s=1e6, memory_survival_probability=probability)
        assert two_tier_effective_ratio(job, 1e4) == 0.0
        assert optimal_storage_interval_s(job) > 0.0
    assert two_tier_effective_ratio(GPT2_100B, math.inf) == 0.0


@pytest.mark.parametrize("name", [field.name for field in fields(TwoTier)])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_bad_value_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is"):
        replace(GPT2_100B, **{name: value})


def test_other_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match="iteration_s is 0"):
        replace(GPT2_100B, iteration_s=0.0)
    with pytest.raises(ValueError, match=r"memory_survival_probability is 1\.5"):
        replace(GPT2_100B, memory_survival_probability=1.5)
    for interval_s in (398.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"Eq\. 2 allows 399"):
            two_tier_effective_ratio(GPT2_100B, interval_s)
