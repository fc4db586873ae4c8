"""Edits of traces: what they must keep, as properties."""

from collections import Counter
from fractions import Fraction
from itertools import groupby, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castor_traces.edit import compress, merge, rescale, shuffle_machines, slice_trace
from castor_traces.read import parse
from castor_traces.trace import Failure, Trace, make_trace
from castor_traces.write import format_trace

RELAXED = settings(
    deadline=None, derandomize=True, max_examples=6 * settings.default.max_examples // 5
)
DAY_NS = 86_400 * 10**9


@st.composite
def traces(draw: st.DrawFn, span_ns: int = 1000) -> Trace:
    machines = draw(st.integers(1, 6))
    # Few instants, so that joint failures are common.
    instants = draw(st.lists(st.integers(0, span_ns), min_size=1, max_size=4))
    failures = draw(
        st.lists(
            st.builds(
                Failure,
                time_ns=st.sampled_from(instants),
                machine=st.one_of(st.none(), st.integers(0, machines - 1)),
                kind=st.sampled_from(["software", "hardware"]),
                duration_ns=st.one_of(st.none(), st.integers(0, 2 * span_ns)),
                domain=st.sampled_from(["", "rack"]),
            ),
            max_size=12,
        )
    )
    return make_trace("t", machines, span_ns, failures, source="s", notes=[("k", "v")])


def joint_sizes(trace: Trace) -> list[int]:
    return sorted(len(list(group)) for _, group in groupby(f.time_ns for f in trace.failures))


def test_a_slice_counts_from_its_start_and_keeps_its_own_edge_only():
    trace = make_trace(
        "t", 2, 10 * 10**9, [Failure(t * 10**9, 0, "hardware", 99) for t in (0, 2, 5, 10)]
    )
    part = slice_trace(trace, 2, 5)
    assert [(f.time_ns, f.duration_ns) for f in part.failures] == [(0, 99)]
    assert part.span_ns == 3 * 10**9
    assert part.machines == 2
    assert [f.time_ns for f in slice_trace(trace, 5, 10).failures] == [0, 5 * 10**9]
    assert dict(slice_trace(part, 0, 1).notes)["edits"] == "slice 2..5 s; slice 0..1 s"


@pytest.mark.parametrize(("start", "end"), [(-1, 1), (2, 1), (0, 11)])
def test_a_slice_outside_of_the_trace_is_refused(start, end):
    with pytest.raises(ValueError, match="expected 0 <= start <= end <= 10"):
        slice_trace(make_trace("t", 1, 10 * 10**9, []), start, end)


@RELAXED
@given(traces(), st.lists(st.integers(0, 1000), min_size=1, max_size=4))
def test_adjacent_slices_share_no_failure_and_lose_none(trace, cuts):
    edges = [Fraction(cut, 10**9) for cut in sorted({0, 1000, *cuts})]
    parts = [slice_trace(trace, start, end) for start, end in pairwise(edges)]
    assert sum(len(part.failures) for part in parts) == len(trace.failures)
    rejoined = [
        (f.time_ns + int(start * 10**9), f.machine)
        for start, part in zip(edges, parts, strict=False)
        for f in part.failures
    ]
    assert rejoined == [(f.time_ns, f.machine) for f in trace.failures]


@RELAXED
@given(traces(), st.fractions(Fraction(1, 50), 50))
def test_compression_keeps_order_and_joint_failures(trace, factor):
    fast = compress(trace, factor)
    assert [f.machine for f in fast.failures] == [f.machine for f in trace.failures]
    assert abs(fast.span_ns - trace.span_ns / factor) <= Fraction(1, 2)
    for before, after in zip(trace.failures, fast.failures, strict=True):
        assert abs(after.time_ns - before.time_ns / factor) <= Fraction(1, 2)
        if before.duration_ns is None:
            assert after.duration_ns is None
        else:
            assert abs(after.duration_ns - before.duration_ns / factor) <= Fraction(1, 2)
    if factor <= 1:
        assert joint_sizes(fast) == joint_sizes(trace)


@pytest.mark.parametrize("factor", [0, -1.5])
def test_compression_refuses_what_is_no_factor(factor):
    with pytest.raises(ValueError, match="above 0"):
        compress(make_trace("t", 1, 1, []), factor)


@RELAXED
@given(traces(), traces())
def test_merging_on_the_same_machines_is_the_union(one, two):
    both = merge([one, two])
    assert both.machines == max(one.machines, two.machines)
    assert Counter(both.failures) == Counter(one.failures) + Counter(two.failures)
    assert both.source == "s"


@RELAXED
@given(traces(), traces())
def test_merging_side_by_side_keeps_machines_and_racks_apart(one, two):
    both = merge([one, two], side_by_side=True)
    assert both.machines == one.machines + two.machines
    assert len(both.failures) == len(one.failures) + len(two.failures)
    expected = Counter((f.time_ns, f.machine) for f in one.failures)
    expected += Counter(
        (f.time_ns, None if f.machine is None else f.machine + one.machines) for f in two.failures
    )
    assert Counter((f.time_ns, f.machine) for f in both.failures) == expected
    assert {f.domain for f in both.failures} <= {"", "rack", "rack~1"}
    racks = Counter(f.domain for f in both.failures)
    assert racks["rack~1"] == sum(f.domain == "rack" for f in two.failures)


def test_merging_needs_traces_of_one_span():
    with pytest.raises(ValueError, match="at least one"):
        merge([])
    with pytest.raises(ValueError, match="spans differ"):
        merge([make_trace("a", 1, 1, []), make_trace("b", 1, 2, [])])


@RELAXED
@given(traces(), st.integers(0, 2**40))
def test_shuffling_only_renumbers(trace, seed):
    shuffled = shuffle_machines(trace, seed)
    assert shuffled == shuffle_machines(trace, seed)
    counts = Counter(f.machine for f in trace.failures if f.machine is not None)
    again = Counter(f.machine for f in shuffled.failures if f.machine is not None)
    assert sorted(counts.values()) == sorted(again.values())
    assert joint_sizes(shuffled) == joint_sizes(trace)
    # Each machine's own history moves to another number whole.
    assert histories(trace) == histories(shuffled)


def histories(trace: Trace) -> Counter:
    of = {m: tuple(f for f in trace.failures if f.machine == m) for m in range(trace.machines)}
    return Counter(tuple((f.time_ns, f.kind, f.duration_ns) for f in fs) for fs in of.values())


def test_shuffling_reaches_every_order_about_equally_often():
    trace = make_trace("t", 3, 9, [Failure(m, m, "hardware") for m in range(3)])
    orders = Counter(
        tuple(f.machine for f in shuffle_machines(trace, seed).failures) for seed in range(1200)
    )
    # 200 each are expected, with a standard deviation of 13.
    assert len(orders) == 6
    assert all(135 < count < 265 for count in orders.values())


@RELAXED
@given(traces(), st.integers(1, 25), st.integers(0, 99))
def test_rescaling_keeps_what_a_trace_must_hold(trace, machines, seed):
    scaled = rescale(trace, machines, seed)
    assert scaled == rescale(trace, machines, seed)
    assert scaled.machines == machines
    assert scaled.span_ns == trace.span_ns
    assert parse(format_trace(scaled), file="x") == (scaled, [])


def test_rescaling_to_the_same_number_changes_nothing():
    trace = make_trace("t", 3, 9, [Failure(m, m, "hardware") for m in range(3)])
    assert rescale(trace, 3, 7).failures == trace.failures


@RELAXED
@given(traces(), st.integers(1, 6), st.integers(0, 99))
def test_thinning_keeps_whole_machines(trace, machines, seed):
    machines = min(machines, trace.machines)
    thin = rescale(trace, machines, seed)
    before = {
        m: tuple(
            (f.time_ns, f.kind, f.duration_ns, f.domain) for f in trace.failures if f.machine == m
        )
        for m in range(trace.machines)
    }
    after = [
        tuple((f.time_ns, f.kind, f.duration_ns, f.domain) for f in thin.failures if f.machine == m)
        for m in range(machines)
    ]
    assert not Counter(after) - Counter(before.values())


def test_thinning_draws_each_machine_and_each_any_failure_equally_often():
    burst = [Failure(5, None, "hardware") for _ in range(3)]
    trace = make_trace("t", 4, 9, [*(Failure(m, m, "hardware") for m in range(4)), *burst])
    named = Counter()
    anonymous = Counter()
    for seed in range(600):
        thin = rescale(trace, 2, seed)
        named.update(f.time_ns for f in thin.failures if f.machine is not None)
        anonymous[sum(f.machine is None for f in thin.failures)] += 1
    # Each of four machines is kept in half of the draws (standard deviation 12.2).
    assert all(240 < named[m] < 360 for m in range(4))
    # Three of four machines fail and two are kept: one or two of them, never none or three.
    assert set(anonymous) == {1, 2}
    assert 240 < anonymous[1] < 360


@RELAXED
@given(traces(), st.integers(2, 4), st.integers(0, 99))
def test_superposition_keeps_rates_and_joint_failures_exactly(trace, copies, seed):
    wide = rescale(trace, copies * trace.machines, seed)
    assert len(wide.failures) == copies * len(trace.failures)
    counts = Counter(f.machine for f in trace.failures)
    for copy in range(copies):
        first = copy * trace.machines
        for machine in range(trace.machines):
            assert sum(f.machine == first + machine for f in wide.failures) == counts[machine]
    suffixes = {f.domain for f in wide.failures} - {""}
    assert suffixes <= {"rack", *(f"rack~{copy}" for copy in range(1, copies))}


def test_superposition_moves_each_copy_as_one_and_apart_from_the_others():
    burst = [Failure(3 * DAY_NS, m, "hardware", 5) for m in range(4)]
    trace = make_trace("t", 4, 10 * DAY_NS, [*burst, Failure(9 * DAY_NS, 1, "software")])
    wide = rescale(trace, 10, seed=1)
    groups = [
        [f.machine for f in group] for _, group in groupby(wide.failures, key=lambda f: f.time_ns)
    ]
    bursts = sorted(g for g in groups if len(g) > 1)
    assert bursts == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    # The distance between a copy's failures is the old one, around the loop.
    for copy in range(2):
        mine = [f for f in wide.failures if f.machine // 4 == copy]
        burst_ns = next(f.time_ns for f in mine if f.kind == "hardware")
        single_ns = next(f.time_ns for f in mine if f.kind == "software")
        assert (single_ns - burst_ns) % trace.span_ns == 6 * DAY_NS


def test_rescaling_to_no_machines_is_refused():
    with pytest.raises(ValueError, match="machines must be"):
        rescale(make_trace("t", 1, 1, []), 0, 0)


def test_the_same_seed_gives_the_same_bytes_forever():
    trace = make_trace("t", 4, 1000, [Failure(m * 10, m, "hardware") for m in range(4)])
    wide = rescale(trace, 6, seed=2026)
    assert [(f.time_ns, f.machine) for f in wide.failures] == [
        (0, 0),
        (10, 1),
        (20, 2),
        (30, 3),
        (832, 4),
        (842, 5),
    ]
