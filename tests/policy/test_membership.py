"""When a failure is detected: polls against a formula, and processes that stand still or stall."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_policy.membership import Lease, detection_ns, known_ns
from castor_policy.trainer_watch import Stall, Stillness


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
    """The artifact: heartbeats every 3 s, polls every 5 s, 3 misses: 15 s, here 13 s to 19 s."""
    second = 10**9
    delays_s = {detection_ns(t * second, 3 * second, 5 * second, 3) / second - t for t in range(15)}
    assert min(delays_s) == 13
    assert max(delays_s) == 19


@given(st.integers(0, 10**15), st.integers(0, 5), st.integers(0, 5))
def test_no_misses_stand_for_a_detector_that_needs_no_time(failure_ns, heartbeat, poll) -> None:
    assert detection_ns(failure_ns, heartbeat, poll, 0) == failure_ns


@given(st.integers(0, 10**15), st.integers(-1, 5), periods, st.booleans())
def test_of_a_process_its_agent_tells_and_of_a_machine_its_silence(
    at_ns, exit_ns, period, has_standby
) -> None:
    silent_ns = detection_ns(at_ns, *period)
    assert known_ns(at_ns, 1, *period, exit_ns, -1, has_standby) == silent_ns
    exited_ns = silent_ns if exit_ns < 0 else at_ns + exit_ns
    assert known_ns(at_ns, 0, *period, exit_ns, 3, has_standby) == exited_ns


@given(st.integers(0, 10**15), st.integers(0, 10), periods)
def test_of_a_machine_those_around_it_tell_if_a_standby_can_take_its_place(
    at_ns, unreached_ns, period
) -> None:
    silent_ns = detection_ns(at_ns, *period)
    assert known_ns(at_ns, 1, *period, 2, unreached_ns, False) == silent_ns
    assert known_ns(at_ns, 1, *period, 2, unreached_ns, True) == min(
        silent_ns, at_ns + unreached_ns
    )


# ---- leases ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lease_s", [1.0, 2.5, 5.0, 30.0])
def test_a_lease_is_heartbeats_that_miss(lease_s: float) -> None:
    """`detection_ns` with a lease's figures is what renewals and etcd's looks come to."""
    lease, second = Lease(lease_s), 10**9
    delays_s = [
        (detection_ns(at_ns, *lease.heartbeats()) - at_ns) / second
        for at_ns in range(0, 4000 * second, 190_000_003)
    ]
    assert lease.low_s - 0.01 <= min(delays_s)
    assert max(delays_s) <= lease.high_s
    assert statistics.mean(delays_s) == pytest.approx(lease.mean_s, abs=0.02)
    assert statistics.stdev(delays_s) == pytest.approx(lease.deviation_s, rel=0.03)


# ---- stillness ---------------------------------------------------------------------------------


def still_at_s(stillness: Stillness, looks_s: Sequence[float]) -> float | None:
    """Return the look at which a process that never moves is held for hung."""
    return next((at for at in looks_s if stillness.observe(at, 7, 1.5)), None)


def test_a_process_that_never_moves_is_hung_after_the_limit() -> None:
    looks_s = [tenth / 10 for tenth in range(30)]
    assert still_at_s(Stillness(0.75, 10.0), looks_s) == 0.8


def test_an_observer_that_was_stopped_itself_has_not_watched() -> None:
    """A whole machine that was suspended for an hour does not kill its trainers as it wakes."""
    stillness = Stillness(0.75, 0.1)
    assert still_at_s(stillness, [0.0, 3600.0, 3600.05, 3600.1]) is None
    assert still_at_s(stillness, [3600.2 + tenth / 10 for tenth in range(20)]) == 3600.7


@pytest.mark.parametrize("moved", [(8, 1.5), (7, 1.6)], ids=["heartbeat", "processor time"])
def test_either_sign_of_life_begins_the_time_anew(moved: tuple[int, float]) -> None:
    stillness = Stillness(0.75, 10.0)
    assert still_at_s(stillness, [0.0, 0.5]) is None
    assert not stillness.observe(0.7, *moved)
    assert not stillness.observe(1.4, *moved)
    assert stillness.observe(1.5, *moved)


# ---- stall -------------------------------------------------------------------------------------


def paced(iteration_s: float, iterations: int, **limits: float) -> tuple[Stall, float]:
    """Return what has seen so many iterations, and when the last of them ended."""
    stall = Stall(10.0, **{"least_s": 60.0, "first_s": 900.0, **limits})
    for iteration in range(iterations + 1):
        assert not stall.observe(iteration * iteration_s, iteration)
    return stall, iterations * iteration_s


def test_silence_below_the_floor_is_no_stall_however_short_iterations_are() -> None:
    """Ten iterations of a millisecond would be a stall at once; an evaluation takes a minute."""
    stall, ended_s = paced(0.001, 30)
    assert not stall.observe(ended_s + 59.9, 30)
    assert stall.observe(ended_s + 60.1, 30)


def test_above_the_floor_the_median_iteration_decides() -> None:
    stall, ended_s = paced(20.0, 5)
    assert stall.limit_s == 200.0
    assert not stall.observe(ended_s + 199.0, 5)
    assert stall.observe(ended_s + 201.0, 5)


def test_one_long_iteration_does_not_move_the_limit() -> None:
    stall, ended_s = paced(20.0, 5)
    assert not stall.observe(ended_s + 150.0, 6)
    assert stall.limit_s == 200.0


def test_the_start_has_patience_of_its_own() -> None:
    stall, ended_s = paced(1.0, 1)
    assert not stall.observe(ended_s + 899.0, 1)
    assert stall.observe(ended_s + 901.0, 1)


def test_any_sign_of_life_begins_the_silence_anew() -> None:
    stall, ended_s = paced(1.0, 5)
    assert not stall.observe(ended_s + 50.0, 5, "a collective")
    assert not stall.observe(ended_s + 105.0, 5, "a collective")
    assert not stall.observe(ended_s + 106.0, 5, "another")
    assert not stall.observe(ended_s + 160.0, 5, "another")
    assert stall.observe(ended_s + 166.5, 5, "another")


def test_who_is_busy_may_be_silent_and_the_time_counts_from_the_end_of_that() -> None:
    stall, ended_s = paced(1.0, 5)
    for minute in range(1, 30):
        assert not stall.observe(ended_s + 60.0 * minute, 5, busy=True)
    end_s = ended_s + 60.0 * 29
    assert not stall.observe(end_s + 59.0, 5)
    assert stall.observe(end_s + 61.0, 5)


def test_a_stall_is_not_seen_in_time_that_nobody_watched() -> None:
    stall, ended_s = paced(1.0, 5, longest_gap_s=0.1)
    assert not stall.observe(ended_s + 3600.0, 5)
    looks = [stall.observe(ended_s + 3600.0 + tenth / 10, 5) for tenth in range(1, 602)]
    assert looks.index(True) in (598, 599)
