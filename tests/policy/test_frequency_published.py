"""The paper's closed-form lines, against the values that its figures and artifact give."""

from __future__ import annotations

import math

import pytest

from castor_policy.published import (
    checkpoint_time_reduction,
    gemini_effective_ratio,
    highfreq_effective_ratio,
    opt_failures_per_day,
    strawman_effective_ratio,
)

FIG_15A = {
    gemini_effective_ratio: (0.994, 0.988, 0.981, 0.975, 0.969, 0.963, 0.956, 0.950),
    strawman_effective_ratio: (0.922, 0.844, 0.767, 0.689, 0.611, 0.533, 0.456, 0.378),
    highfreq_effective_ratio: (0.839, 0.821, 0.803, 0.785, 0.767, 0.749, 0.731, 0.713),
}
FIG_15B = {
    200: (0.981, 0.767, 0.803),
    400: (0.963, 0.533, 0.749),
    600: (0.944, 0.300, 0.695),
    800: (0.925, 0.067, 0.640),
    900: (0.916, 0.0, 0.613),
    1000: (0.906, 0.0, 0.586),
}


def test_fig_15a() -> None:
    for line, values in FIG_15A.items():
        for failures_per_day, value in enumerate(values, 1):
            # The artifact prints three digits, some of them cut instead of rounded.
            assert line(failures_per_day) == pytest.approx(value, abs=0.001)


def test_fig_15b_and_its_headline() -> None:
    for instances, values in FIG_15B.items():
        rate = opt_failures_per_day(instances)
        for line, value in zip(FIG_15A, values, strict=True):
            assert line(rate) == pytest.approx(value, abs=0.001)
    rate = opt_failures_per_day(1000)
    assert gemini_effective_ratio(rate) / highfreq_effective_ratio(rate) == pytest.approx(
        1.546, abs=0.001
    )


@pytest.mark.parametrize(
    ("nic_gbps", "factors"),
    [(100, (17, 34, 51, 68)), (200, (34, 68, 102, 136)), (400, (68, 136, 204, 272))],
)
def test_fig_11(nic_gbps: int, factors: tuple[int, ...]) -> None:
    found = [checkpoint_time_reduction(n, nic_gbps * 1e9) for n in (4, 8, 12, 16)]
    assert found == pytest.approx(factors)
    assert checkpoint_time_reduction(16, nic_gbps * 1e9, replicas=3) == pytest.approx(
        factors[-1] / 2
    )


def test_the_lines_without_failures() -> None:
    assert gemini_effective_ratio(0) == strawman_effective_ratio(0) == 1.0
    assert highfreq_effective_ratio(0) == pytest.approx(6 / 7)


def test_bad_arguments_are_named() -> None:
    for line in FIG_15A:
        for rate in (-1.0, math.nan):
            with pytest.raises(ValueError, match="failures_per_day is"):
                line(rate)
    with pytest.raises(ValueError, match="instances is -1"):
        opt_failures_per_day(-1)
    with pytest.raises(ValueError, match="instances is 0"):
        checkpoint_time_reduction(0, 1e9)
    with pytest.raises(ValueError, match="nic_bps is 0"):
        checkpoint_time_reduction(1, 0)
    with pytest.raises(ValueError, match="replicas is 1"):
        checkpoint_time_reduction(1, 1e9, replicas=1)
