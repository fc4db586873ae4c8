"""The rule that lowers the checkpoint frequency: against brute force and Young's rule."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castor_policy.frequency import young_interval_s
from castor_policy.frequency_fit import checkpoint_frequency, least_wasteful_frequency

deterministic = settings(
    derandomize=True, deadline=None, max_examples=3 * settings.default.max_examples // 2
)


@deterministic
@given(
    iteration_s=st.floats(0.1, 100.0),
    idle_share=st.one_of(st.just(0.0), st.floats(0.001, 1.0)),
    traffic_share=st.floats(0.0, 8.0),
    mtbf_iterations=st.floats(1.0, 1e5),
    from_snapshot=st.booleans(),
)
def test_no_other_period_wastes_less(
    iteration_s: float,
    idle_share: float,
    traffic_share: float,
    mtbf_iterations: float,
    from_snapshot: bool,
) -> None:
    job = {
        "iteration_s": iteration_s,
        "traffic_s": traffic_share * iteration_s,
        "idle_s": idle_share * iteration_s,
        "failure_rate_per_s": 1.0 / (mtbf_iterations * iteration_s),
        "retrieval_s": 1.0,
    }
    longest = 120
    chosen = least_wasteful_frequency(
        **job, from_snapshot=from_snapshot, longest_interval_s=(longest + 0.5) * iteration_s
    )
    shares = [
        checkpoint_frequency(every, **job, from_snapshot=from_snapshot).wasted_share
        for every in range(1, longest + 1)
    ]
    assert 1 <= chosen.every <= longest
    assert chosen.wasted_share == pytest.approx(min(shares), rel=1e-9)


def test_every_iteration_where_the_traffic_fits() -> None:
    for rate in (0.0, 1e-6, 1e-2):
        chosen = least_wasteful_frequency(
            iteration_s=62.0, traffic_s=2.5, idle_s=10.0, failure_rate_per_s=rate, retrieval_s=2.5
        )
        assert (chosen.every, chosen.delay_s) == (1, 0.0)
        # Eq. 1 with 1/f = t_ckpt = T: 1.5 iterations and the retrieval.
        assert chosen.wasted_per_failure_s == pytest.approx(1.5 * 62.0 + 2.5)


def test_a_delay_that_cannot_spread_gives_youngs_interval() -> None:
    rate = 1e-6
    chosen = least_wasteful_frequency(
        iteration_s=1.0, traffic_s=3.0, idle_s=1.0, failure_rate_per_s=rate
    )
    assert chosen.delay_s == 2.0
    assert chosen.every == pytest.approx(young_interval_s(2.0, 1 / rate), rel=2e-3)


def test_a_snapshot_spreads_over_as_many_iterations_as_it_needs() -> None:
    chosen = least_wasteful_frequency(
        iteration_s=10.0, traffic_s=7.0, idle_s=2.0, failure_rate_per_s=1e-5, from_snapshot=True
    )
    assert (chosen.every, chosen.delay_s, chosen.completion_s) == (4, 0.0, 40.0)


def test_frequent_failures_are_worth_a_delay() -> None:
    # A failure every 20 iterations: waiting 4 iterations for free costs more than the delay.
    chosen = least_wasteful_frequency(
        iteration_s=10.0, traffic_s=7.0, idle_s=2.0, failure_rate_per_s=1 / 200, from_snapshot=True
    )
    assert chosen.every < 4
    assert chosen.delay_s > 0


def test_without_failures_a_traffic_that_never_fits_is_sent_as_rarely_as_allowed() -> None:
    chosen = least_wasteful_frequency(
        iteration_s=10.0,
        traffic_s=7.0,
        idle_s=0.0,
        failure_rate_per_s=0.0,
        longest_interval_s=1000.0,
    )
    assert chosen.every == 100


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"iteration_s": 0.0}, "above 0 s"),
        ({"idle_s": 11.0}, "cannot be idle for longer"),
        ({"traffic_s": math.nan}, "traffic_s is nan"),
        ({"failure_rate_per_s": -1.0}, "failure_rate_per_s"),
    ],
)
def test_arguments_out_of_range(changes: dict[str, float], words: str) -> None:
    job = {
        "iteration_s": 10.0,
        "traffic_s": 1.0,
        "idle_s": 2.0,
        "failure_rate_per_s": 0.0,
        **changes,
    }
    with pytest.raises(ValueError, match=words):
        least_wasteful_frequency(**job)
    with pytest.raises(ValueError, match="period of 1 iteration"):
        checkpoint_frequency(0, iteration_s=1.0, traffic_s=0.0, idle_s=0.0, failure_rate_per_s=0.0)
