"""Failures that come together, and whose machines share a domain."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_traces.domains import domain_numbers, domains_of
from castor_traces.edit import rescale, shuffle_machines
from castor_traces.joint import interruptions_per_s, joint_groups, machines_of
from castor_traces.statistics import trace_statistics
from castor_traces.trace import Failure, Trace, make_trace

S = 1_000_000_000
DAY_NS = 86_400 * S


def racks(*, apart_ns: int = 0) -> Trace:
    """16 machines in 4 racks; each rack fails whole once, its machines `apart_ns` apart."""
    failures = [
        Failure(
            (rack + 1) * DAY_NS + place * apart_ns, 4 * rack + place, "hardware",
            domain=f"rack-{rack}",
        )
        for rack in range(4)
        for place in range(4)
    ]  # fmt: skip
    return make_trace("racks", 16, 10 * DAY_NS, failures)


@pytest.mark.parametrize("apart_ns", [0, S // 2])
def test_a_rack_whose_machines_are_logged_half_a_second_apart_failed_once(apart_ns: int) -> None:
    found = trace_statistics(racks(apart_ns=apart_ns))
    assert found.simultaneous_groups == (4, 4, 4, 4)
    assert found.simultaneous_share == 1.0
    assert (found.domains, found.domain_failures) == (4, 4)
    assert trace_statistics(racks(apart_ns=S // 2), within_ns=S).simultaneous_groups == (3,) * 4


def test_a_window_does_not_grow_with_what_it_finds() -> None:
    failures = [Failure(second * S, second, "hardware") for second in range(10)]
    sizes = [len(group) for group in joint_groups(failures, within_ns=3 * S)]
    assert sizes == [4, 4, 2]
    with pytest.raises(ValueError, match="0 or more"):
        list(joint_groups(failures, within_ns=-1))


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 5)), max_size=12),
    st.integers(0, 20),
)
def test_every_failure_is_in_one_group_that_fits_the_window(
    rows: list[tuple[int, int]], within_ns: int
) -> None:
    trace = make_trace("t", 6, 100, [Failure(time, machine, "hardware") for time, machine in rows])
    groups = list(joint_groups(trace.failures, within_ns))
    assert tuple(failure for group in groups for failure in group) == trace.failures
    for group in groups:
        assert group[-1].time_ns - group[0].time_ns <= within_ns
    for one, other in pairwise(groups):
        assert other[0].time_ns - one[0].time_ns > within_ns


def test_interruptions_against_every_choice_of_machines() -> None:
    groups = [{0}, {1}, {0, 2}, {3, 4, 5}]
    failures = [
        Failure(100 * number * S, machine, "hardware")
        for number, group in enumerate(groups)
        for machine in sorted(group)
    ]
    trace = make_trace("t", 9, 1000 * S, failures)
    for size in range(1, 10):
        jobs = list(combinations(range(9), size))
        hits = sum(bool(group & set(job)) for job in jobs for group in groups) / len(jobs)
        assert interruptions_per_s(trace, size) == pytest.approx(hits / 1000)
    # Two copies and a thinned third, each failing by itself.
    assert interruptions_per_s(trace, 20) == pytest.approx(
        2 * interruptions_per_s(trace, 9) + interruptions_per_s(trace, 2)
    )


def test_interruptions_are_those_of_thinned_traces() -> None:
    """The closed form is the mean over `rescale`'s thinnings: half of all machines fail at once."""
    failures = [
        Failure((number + 1) * 3600 * S, (machine * 7 + number * 13) % 100, "hardware")
        for number in range(20)
        for machine in range(50)
    ]
    trace = make_trace("half", 100, 30 * 3600 * S, failures)
    counts = [
        sum(1 for group in joint_groups(rescale(trace, 2, seed).failures) if machines_of(group))
        for seed in range(300)
    ]
    mean = sum(counts) / len(counts)
    assert mean / (trace.span_ns / S) == pytest.approx(interruptions_per_s(trace, 2), rel=0.05)


def test_a_shuffle_keeps_racks_together_and_moves_them() -> None:
    trace = racks()
    before = domains_of(trace)
    assert before is not None
    orders = set()
    for seed in range(20):
        after = domains_of(shuffle_machines(trace, seed))
        assert after is not None
        assert sorted(after) == sorted(before)
        runs = [after[place : place + 4] for place in range(0, 16, 4)]
        assert all(len(set(run)) == 1 for run in runs)
        orders.add(tuple(run[0] for run in runs))
    assert len(orders) > 10
    numbers = domain_numbers(shuffle_machines(trace, 3), 16)
    assert numbers == [place // 4 for place in range(16)]


def test_a_shuffle_renumbers_each_machine_once() -> None:
    failures = [Failure(machine * S, machine, "hardware") for machine in range(30)]
    failures += [Failure(40 * S, machine, "hardware", domain="a") for machine in (3, 17, 29)]
    trace = make_trace("t", 30, 50 * S, failures)
    shuffled = shuffle_machines(trace, 5)
    first = [failure.machine for failure in shuffled.failures[:30]]
    assert sorted(machine for machine in first if machine is not None) == list(range(30))
    together = sorted(f.machine for f in shuffled.failures if f.domain and f.machine is not None)
    assert together == list(range(together[0], together[0] + 3))


def test_a_trace_without_domains_says_so() -> None:
    trace = make_trace("t", 3, S, [Failure(0, 0, "hardware")])
    assert domains_of(trace) is None
    assert domain_numbers(trace, 3) is None
    with pytest.raises(ValueError, match="has 3 machines"):
        domain_numbers(trace, 4)
    named = make_trace("t", 3, S, [Failure(0, 1, "hardware", domain="x")])
    assert domains_of(named) == ("", "x", "")
    assert domain_numbers(named, 3) == [0, 1, 2]
