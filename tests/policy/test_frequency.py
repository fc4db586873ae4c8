"""Wasted time, Young, Daly, the exact optimum and Lambert's W, against theory and references."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import optimize, special

from castor_policy.frequency import (
    daly_interval_s,
    expected_run_time_s,
    expected_slowdown,
    highfreq_interval_iterations,
    lambert_w0,
    memory_stall,
    min_interval_s,
    nearest_period,
    optimal_interval_s,
    shortest_period,
    wasted_time_s,
    young_interval_s,
)

deterministic = settings(
    derandomize=True, deadline=None, max_examples=2 * settings.default.max_examples
)

MINUTE_S = 60.0
HOUR_S = 3600.0

times_s = st.floats(1e-6, 1e8)


def log_floats(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(math.log10(low), math.log10(high)).map(lambda power: 10.0**power)


def test_eq_1_gives_the_paper_s_worked_example() -> None:
    transfer_s = 42 * MINUTE_S
    assert wasted_time_s(transfer_s, 1 / transfer_s, transfer_s) == pytest.approx(105 * MINUTE_S)


def test_eq_1_with_gemini_and_strawman() -> None:
    assert wasted_time_s(62.0, 1 / 62.0, 0.0) == pytest.approx(1.5 * 62.0)
    # docs/paper.md, E9: Eq. 1 gives 106 min where Fig. 10 shows 98.
    strawman_s = wasted_time_s(480.0, 1 / (3 * HOUR_S), 480.0)
    assert strawman_s == pytest.approx(106 * MINUTE_S)


def test_eq_2_takes_the_slower_of_checkpoint_and_iteration() -> None:
    assert min_interval_s(480.0, 62.0) == 480.0
    assert min_interval_s(2.5, 62.0) == 62.0


@given(st.integers(0, 10**6), st.integers(1, 10**4), st.integers(0, 10**6))
def test_a_period_is_whole_iterations_as_near_as_eq_2_allows(
    checkpoint: int, iteration: int, interval: int
) -> None:
    shortest = shortest_period(checkpoint, iteration)
    assert shortest * iteration >= min_interval_s(checkpoint, iteration)
    assert shortest == 1 or (shortest - 1) * iteration < checkpoint
    period = nearest_period(interval, checkpoint, iteration)
    assert period >= shortest
    assert period == shortest or abs(period * iteration - interval) <= iteration / 2


def test_a_checkpoint_in_memory_is_free_while_its_traffic_fits_the_idle_time() -> None:
    assert [memory_stall(250, 100, every) for every in (1, 2, 3)] == [150, 50, 0]
    assert memory_stall(0.5, 2.0, 1) == 0


@pytest.mark.parametrize(
    ("checkpoint_s", "iteration_s", "iterations"),
    [
        (480, 62, 8),
        (550, 62, 9),
        (525, 62, 9),
        (2.5, 62, 1),
        (0, 62, 1),
        (1.1, 0.1, 11),
        (62, 62, 1),
    ],
)
def test_highfreq_waits_for_whole_iterations(
    checkpoint_s: float, iteration_s: float, iterations: int
) -> None:
    assert highfreq_interval_iterations(checkpoint_s, iteration_s) == iterations


@pytest.mark.parametrize(
    ("mtbf_s", "published_min"), [(24 * HOUR_S, 117), (6 * HOUR_S, 57), (15 * MINUTE_S, 9.1)]
)
def test_daly_s_published_optima(mtbf_s: float, published_min: float) -> None:
    """Daly 2006, Fig. 3 to 5: delta = 5 min."""
    assert daly_interval_s(300.0, mtbf_s) / MINUTE_S == pytest.approx(published_min, abs=0.5)


def test_young_s_square_root() -> None:
    assert young_interval_s(300.0, 24 * HOUR_S) == 7200.0
    assert young_interval_s(0.0, 1.0) == 0.0
    assert young_interval_s(1e300, 1e300) == pytest.approx(math.sqrt(2) * 1e300)
    assert young_interval_s(1e-300, 1e-300) == pytest.approx(math.sqrt(2) * 1e-300, abs=0)


def test_daly_changes_to_mtbf_at_twice_it() -> None:
    assert daly_interval_s(2000.0, 1000.0) == 1000.0
    assert daly_interval_s(1e9, 1000.0) == 1000.0
    below_s = daly_interval_s(1999.999, 1000.0)
    assert below_s == pytest.approx(2000 * (1 + 1 / 3 + 1 / 9) - 2000, rel=1e-5)


@given(st.floats(-1 / math.e, 1e6, exclude_min=True))
@deterministic
def test_lambert_w0_is_scipy_s(value: float) -> None:
    w = lambert_w0(value)
    # At the branch point both know 1 + W only to half of their digits.
    near = 1e-7 if value < -0.3678 else 1e-13
    assert w == pytest.approx(special.lambertw(value).real, rel=1e-13, abs=near)
    assert w >= -1.0


@given(log_floats(1e-300, 1e300))
@deterministic
def test_lambert_w0_over_all_magnitudes(magnitude: float) -> None:
    assert lambert_w0(magnitude) == pytest.approx(
        special.lambertw(magnitude).real, rel=1e-13, abs=0
    )
    if magnitude < 0.36:
        assert lambert_w0(-magnitude) == pytest.approx(
            special.lambertw(-magnitude).real, rel=1e-12, abs=0
        )


def test_lambert_w0_at_its_edges() -> None:
    assert lambert_w0(-math.exp(-1.0)) == pytest.approx(-1.0, abs=1e-7)
    assert lambert_w0(0.0) == 0.0
    assert lambert_w0(math.e) == pytest.approx(1.0, rel=1e-15)
    for value in (-0.4, math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="W0 of"):
            lambert_w0(value)


@given(log_floats(1e-14, 1e4), log_floats(1e-3, 1e12))
@example(4.9e-5, 1.0)  # on either side of where the series gives way to the iteration
@example(5.1e-5, 1.0)
@deterministic
def test_the_optimum_solves_its_equation(share: float, mtbf_s: float) -> None:
    """-log(1 - u) - u = delta/M with u = tau/M, summed as a series where it would cancel."""
    u = optimal_interval_s(share * mtbf_s, mtbf_s) / mtbf_s
    assert 0.0 < u <= 1.0
    if share > 30:
        assert u == pytest.approx(1.0, abs=1e-12)
    elif u < 0.1:
        series = math.fsum(u**power / power for power in range(2, 25))
        assert series == pytest.approx(share, rel=1e-11, abs=0)
    else:
        # One rounding of u moves log(1 - u) by eps/(1 - u).
        assert -math.log1p(-u) - u == pytest.approx(share, rel=1e-12, abs=1e-14 / (1 - u))


@given(log_floats(1e-6, 1e3), st.floats(-3, 3))
@deterministic
def test_no_other_interval_beats_the_optimum(share: float, power: float) -> None:
    best_s = optimal_interval_s(share, 1.0)
    other_s = best_s * 10.0**power
    best = expected_slowdown(best_s, share, 0.0, 1.0)
    assert best <= expected_slowdown(other_s, share, 0.0, 1.0) * (1 + 1e-12)


@pytest.mark.parametrize("share", [1e-4, 0.01, 0.3, 2.0, 10.0])
def test_the_optimum_is_where_a_numeric_search_finds_it(share: float) -> None:
    found = optimize.minimize_scalar(
        lambda tau: math.expm1(tau + share) / tau,
        bounds=(1e-9, 1.5),
        method="bounded",
        options={"xatol": 1e-11},
    )
    assert optimal_interval_s(share, 1.0) == pytest.approx(found.x, rel=1e-5)


@given(log_floats(1e-9, 0.1))
@deterministic
def test_daly_approaches_the_exact_optimum(share: float) -> None:
    """Daly's terms stop at (delta/2M)^(3/2), so the error is of the next order."""
    exact_s = optimal_interval_s(share, 1.0)
    daly_error = abs(daly_interval_s(share, 1.0) - exact_s) / exact_s
    young_error = abs(young_interval_s(share, 1.0) - exact_s) / exact_s
    assert daly_error <= 0.02 * share**1.5 + 1e-12
    assert daly_error <= young_error


def test_extremes_stay_finite_and_right() -> None:
    assert optimal_interval_s(0.0, 5.0) == 0.0
    assert optimal_interval_s(1e-12, 1e18) == pytest.approx(math.sqrt(2e6), rel=1e-12)
    assert optimal_interval_s(5e-324, 1e300) > 0.0
    assert optimal_interval_s(1e-308, 1e308) == pytest.approx(math.sqrt(2.0), rel=1e-9)
    assert optimal_interval_s(1e300, 1e-300) == 1e-300
    assert optimal_interval_s(1e6, 60.0) == 60.0
    assert expected_slowdown(60.0, 1e6, 600.0, 60.0) == math.inf
    assert expected_slowdown(0.0, 1.0, 0.0, 60.0) == math.inf
    assert expected_slowdown(0.0, 0.0, 0.0, 60.0) == 1.0
    assert expected_slowdown(100.0, 1.0, 5.0, 1e300) == pytest.approx(1.01, rel=1e-15)
    assert expected_slowdown(1e-300, 1e300, 0.0, 1e-300) == math.inf


@given(times_s, times_s, times_s, log_floats(1.0, 1e10))
@deterministic
def test_slowdown_is_the_textbook_formula(
    interval_s: float, checkpoint_s: float, restart_s: float, mtbf_s: float
) -> None:
    if max(interval_s + checkpoint_s, restart_s) > 300 * mtbf_s:
        mtbf_s = max(interval_s + checkpoint_s, restart_s) / 300
    growth = math.expm1((interval_s + checkpoint_s) / mtbf_s) / interval_s
    failing = mtbf_s * math.exp(restart_s / mtbf_s) * growth
    sure = (mtbf_s + restart_s) * growth
    work_s = 1e6
    arguments = (work_s, interval_s, checkpoint_s, restart_s, mtbf_s)
    assert expected_run_time_s(*arguments, True) == pytest.approx(work_s * failing, rel=1e-11)
    assert expected_run_time_s(*arguments, False) == pytest.approx(work_s * sure, rel=1e-11)
    assert 1.0 - 1e-12 <= sure <= failing * (1 + 1e-12)


@pytest.mark.parametrize("failures_during_restart", [True, False])
def test_run_time_is_what_a_simulated_run_takes(failures_during_restart: bool) -> None:
    """Six segments of 40 + 8 s with MTBF 50 s and restarts of 15 s: failures everywhere."""
    draw = random.Random(20060)
    mtbf_s, restart_s = 50.0, 15.0

    def attempt(length_s: float) -> tuple[bool, float]:
        failure_s = draw.expovariate(1.0 / mtbf_s)
        return failure_s >= length_s, min(failure_s, length_s)

    def run_s() -> float:
        total_s, segments = 0.0, 6
        while segments:
            passed, spent_s = attempt(48.0)
            total_s += spent_s
            segments -= passed
            while not passed:
                if not failures_during_restart:
                    total_s += restart_s
                    break
                passed, spent_s = attempt(restart_s)
                total_s += spent_s
        return total_s

    runs_s = [run_s() for _ in range(20_000)]
    error_s = statistics.stdev(runs_s) / math.sqrt(len(runs_s))
    expected_s = expected_run_time_s(240.0, 40.0, 8.0, restart_s, mtbf_s, failures_during_restart)
    assert statistics.fmean(runs_s) == pytest.approx(expected_s, abs=4 * error_s)
    assert error_s < 0.01 * expected_s


def test_no_work_takes_no_time() -> None:
    assert expected_run_time_s(0.0, 0.0, 1.0, 1.0, 1.0, True) == 0.0


BAD_ZERO_OK = [-1.0, math.nan, math.inf]
BAD = [0.0, *BAD_ZERO_OK]


@pytest.mark.parametrize("value", BAD)
def test_what_must_be_above_zero(value: float) -> None:
    with pytest.raises(ValueError, match=r"mtbf_s is .* above 0"):
        young_interval_s(1.0, value)
    with pytest.raises(ValueError, match=r"mtbf_s is .* above 0"):
        daly_interval_s(1.0, value)
    with pytest.raises(ValueError, match=r"mtbf_s is .* above 0"):
        optimal_interval_s(1.0, value)
    with pytest.raises(ValueError, match=r"mtbf_s is .* above 0"):
        expected_slowdown(1.0, 1.0, 1.0, value)
    with pytest.raises(ValueError, match=r"frequency_hz is .* above 0"):
        wasted_time_s(1.0, value, 1.0)
    with pytest.raises(ValueError, match=r"iteration_s is .* above 0"):
        highfreq_interval_iterations(1.0, value)
    with pytest.raises(ValueError, match=r"iteration_s is .* above 0"):
        min_interval_s(1.0, value)


@pytest.mark.parametrize("value", BAD_ZERO_OK)
def test_what_must_not_be_negative(value: float) -> None:
    for function in (young_interval_s, daly_interval_s, optimal_interval_s, min_interval_s):
        with pytest.raises(ValueError, match=r"checkpoint_s is .* 0 or more"):
            function(value, 1.0)
    with pytest.raises(ValueError, match=r"retrieval_s is .* 0 or more"):
        wasted_time_s(1.0, 1.0, value)
    with pytest.raises(ValueError, match=r"work_s is .* 0 or more"):
        expected_run_time_s(value, 1.0, 1.0, 1.0, 1.0, True)
    with pytest.raises(ValueError, match=r"restart_s is .* 0 or more"):
        expected_slowdown(1.0, 1.0, value, 1.0)
