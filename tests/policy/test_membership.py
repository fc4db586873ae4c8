"""When a failure is detected: the formula against a root that polls heartbeats one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from castor_policy.membership import detection_ns


def polled_ns(failure_ns: int, heartbeat_ns: int, poll_ns: int, misses: int) -> int:
    """Play it: the last heartbeat is written at or before the failure; the root polls."""
    last_heartbeat_ns = max(t for t in range(0, failure_ns + 1, heartbeat_ns))
    missed = 0
    poll_at_ns = 0
    while True:
        seen = poll_at_ns - poll_ns < last_heartbeat_ns <= poll_at_ns
        alive = poll_at_ns < last_heartbeat_ns
        missed = 0 if seen or alive else missed + 1
        if missed == misses and poll_at_ns >= failure_ns:
            return poll_at_ns
        if missed >= misses:
            # Held for dead while it still lived: the failure is known as it happens.
            return failure_ns
        poll_at_ns += poll_ns


periods = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4)).filter(
    lambda p: p[2] * p[1] > p[0]
)


@given(st.integers(0, 300), periods)
def test_it_is_the_poll_that_misses_for_the_last_time(failure_ns, period) -> None:
    assert detection_ns(failure_ns, *period) == polled_ns(failure_ns, *period)


@given(st.integers(0, 10**15), st.integers(0, 10**9), periods)
def test_a_later_failure_is_never_detected_earlier(failure_ns, later_ns, period) -> None:
    assert detection_ns(failure_ns, *period) <= detection_ns(failure_ns + later_ns, *period)


@given(st.integers(0, 10**15), periods)
def test_the_delay_is_bounded(failure_ns, period) -> None:
    heartbeat_ns, poll_ns, misses = period
    delay_ns = detection_ns(failure_ns, *period) - failure_ns
    assert max(0, misses * poll_ns - heartbeat_ns) <= delay_ns
    assert delay_ns < (misses + 1) * poll_ns


def test_the_papers_fifteen_seconds() -> None:
    """PAPER.md 2b: heartbeats every 3 s, polls every 5 s, 3 misses: 15 s, here 13 s to 19 s."""
    second = 10**9
    delays_s = {detection_ns(t * second, 3 * second, 5 * second, 3) / second - t for t in range(15)}
    assert min(delays_s) == 13
    assert max(delays_s) == 19


@given(st.integers(0, 10**15), st.integers(0, 5), st.integers(0, 5))
def test_no_misses_stand_for_a_detector_that_needs_no_time(failure_ns, heartbeat, poll) -> None:
    assert detection_ns(failure_ns, heartbeat, poll, 0) == failure_ns
