import json
import os
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import weibull_min

from castor_traces.downtime import machines_down
from castor_traces.failure_stream import to_trace
from castor_traces.generators import PoissonFailures
from castor_traces.importers import import_infinitehbd, import_lanl
from castor_traces.marks import Marks, UniformRepair
from castor_traces.random_draws import Draws
from castor_traces.statistics import interarrival_gaps_s, trace_statistics
from castor_traces.trace import Failure, make_trace
from castor_traces.weibull import fit_weibull

S = 10**9
DAY_NS = 86_400 * S
SHARED = Path(
    os.environ.get("CASTOR_TRACES", "") or Path(__file__).resolve().parents[3] / "shared" / "traces"
)

FAILURES = st.lists(
    st.builds(
        Failure,
        time_ns=st.integers(0, 40),
        machine=st.none() | st.integers(0, 4),
        kind=st.sampled_from(["hardware", "software"]),
        duration_ns=st.none() | st.integers(0, 30) | st.just(2**63 - 1),
    ),
    max_size=12,
)


def trace_of(failures, *, machines=5, span_ns=40):
    return make_trace("t", machines, span_ns, failures)


@settings(max_examples=3 * settings.default.max_examples)
@given(FAILURES)
def test_machines_down_equals_counting_each_nanosecond(failures):
    trace = trace_of(failures)
    counts = []
    for now in range(40):
        down = set()
        for row, failure in enumerate(trace.failures):
            end = failure.time_ns + (failure.duration_ns or 0)
            if failure.time_ns <= now < end:
                down.add(("any", row) if failure.machine is None else failure.machine)
        counts.append(len(down))
    found = machines_down(trace)
    assert found.mean == pytest.approx(sum(counts) / 40)
    assert found.maximum == max(counts)
    steps = np.repeat(found.down, np.diff(np.append(found.time_ns, 40)))
    assert steps.tolist() == counts
    assert found.unknown_durations == sum(f.duration_ns is None for f in trace.failures)


def test_a_repair_of_131_days_that_outlasts_the_span_counts_to_its_end_only():
    trace = trace_of(
        [Failure(25 * DAY_NS, 3, "hardware", 131 * DAY_NS)], span_ns=100 * DAY_NS, machines=10
    )
    assert machines_down(trace).mean == 0.75
    statistics = trace_statistics(trace)
    assert statistics.repair_s.mean == 131 * 86_400
    assert statistics.mean_machines_down == 0.75


def test_zero_length_faults_and_touching_faults_never_count_a_machine_twice():
    faults = [(0, 1, 10), (10, 1, 10), (10, 1, 0), (15, 1, 2), (12, 2, 0), (20, 3, 5)]
    trace = trace_of([Failure(t, m, "hardware", d) for t, m, d in faults])
    down = machines_down(trace)
    assert down.maximum == 1
    assert down.mean == 25 / 40


def test_the_numbers_of_a_small_trace():
    failures = [
        Failure(0, 0, "hardware", 4 * S, cause="GPU"),
        Failure(0, 1, "hardware", 2 * S, cause="GPU"),
        Failure(0, 1, "software", 2 * S),  # the same machine: no larger group
        Failure(10 * S, None, "hardware", None, cause="power"),
        Failure(10 * S, None, "hardware", None, cause="power"),
        Failure(10 * S, 2, "hardware", 6 * S, cause="power"),
        Failure(40 * S, 1, "software", 0),
    ]
    found = trace_statistics(make_trace("t", 8, 86_400 * S, failures), within_ns=0)
    assert (found.failures, found.machines, found.machines_that_failed) == (7, 8, 3)
    assert found.span_s == 86_400.0
    assert found.failures_per_day == 7.0
    assert found.failures_per_machine_day == 7 / 8
    assert found.mtbf_s == 86_400 / 7
    assert found.simultaneous_groups == (3, 2)
    assert found.simultaneous_share == 5 / 7
    assert found.max_machines_down == 2
    assert found.mean_machines_down == 12 / 86_400
    assert (found.repair_s.median, found.repair_s.mean) == (2.0, 14 / 5)
    assert (found.repair_s.known, found.repair_s.unknown) == (5, 2)
    assert (found.interarrival.gaps, found.interarrival.mean_s) == (2, 20.0)
    assert found.interarrival.cv == pytest.approx(np.std([10, 30], ddof=1) / 20)
    listed = found.to_json()
    assert listed["most_failing_machines"] == {"1": 3, "0": 1, "2": 1}
    assert list(listed["most_failing_machines"]) == ["1", "0", "2"]
    assert listed["kinds"] == {"hardware": 5, "software": 2}
    assert listed["causes"] == {"power": 3, "GPU": 2}


@pytest.mark.parametrize("span_ns", [0, 40])
@given(FAILURES)
def test_any_trace_gives_valid_json(span_ns, failures):
    """No crash, no warning (warnings are errors here), no NaN, no infinity."""
    inside = [f for f in failures if f.time_ns <= span_ns]
    text = json.dumps(
        trace_statistics(trace_of(inside, span_ns=span_ns)).to_json(), allow_nan=False
    )
    assert json.loads(text)["failures"] == len(inside)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_failures_give_null_not_a_crash(count):
    failures = [Failure(10 * (i + 1), i, "hardware") for i in range(count)]
    found = trace_statistics(trace_of(failures))
    assert found.interarrival.weibull_shape is None
    assert found.interarrival.cv is None
    assert found.repair_s.median is None
    assert (found.mtbf_s is None) == (count == 0)
    # Without a failure no machine is down; with failures of unknown duration nobody knows.
    assert found.mean_machines_down == (0.0 if count == 0 else None)
    assert found.max_machines_down == (0 if count == 0 else None)


def test_mtbf_at_scale_counts_machines_that_fail_together_once():
    """Against every choice of a job's machines, for groups of one, two and three machines."""
    groups = [{0}, {1}, {0, 2}, {3, 4, 5}]
    failures = [
        Failure(number, machine, "hardware")
        for number, group in enumerate(groups)
        for machine in sorted(group)
    ]
    found = trace_statistics(trace_of(failures, machines=9, span_ns=1000 * S), within_ns=0)
    by_machines = {row.machines: row for row in found.mtbf_at_scale}
    assert set(by_machines) == {1, 8, 9, 64, 512, 4096, 32_768}
    for size in (1, 8, 9):
        jobs = list(combinations(range(9), size))
        hits = sum(bool(group & set(job)) for job in jobs for group in groups) / len(jobs)
        assert by_machines[size].interruption_mtbf_s == pytest.approx(1000 / hits)
        assert by_machines[size].mtbf_s == pytest.approx(1000 * 9 / (7 * size))
    assert by_machines[64].interruption_mtbf_s is None
    assert by_machines[64].mtbf_s == pytest.approx(1000 * 9 / (7 * 64))


def test_the_weibull_fit_agrees_with_scipy():
    for shape, count in ((0.4, 50), (1.0, 300), (3.0, 1000)):
        gaps_s = Draws(1, "gaps", count).weibull(count, shape) * 5e4
        ours, (theirs, _, scale) = fit_weibull(gaps_s), weibull_min.fit(gaps_s, floc=0)
        assert ours.shape == pytest.approx(theirs, rel=1e-4)
        assert ours.scale_s == pytest.approx(scale, rel=1e-4)
        assert ours.ci95_low < ours.shape < ours.ci95_high


@settings(max_examples=3 * settings.default.max_examples // 5)
@given(st.floats(0.1, 10.0), st.floats(1e-6, 1e9), st.integers(0, 50))
def test_the_fit_scales_with_its_data(shape, factor, seed):
    gaps_s = Draws(seed, "gaps").weibull(40, shape)
    one, other = fit_weibull(gaps_s), fit_weibull(gaps_s * factor)
    assert other.shape == pytest.approx(one.shape, rel=1e-6)
    assert other.scale_s == pytest.approx(one.scale_s * factor, rel=1e-6)


@pytest.mark.parametrize("shape", [0.6, 1.0, 2.0])
def test_the_interval_covers_the_true_shape_95_times_of_100(shape):
    """600 samples of 100 gaps: the coverage has a standard error of 0.9 %."""
    fits = [fit_weibull(Draws(seed, "coverage").weibull(100, shape)) for seed in range(600)]
    covered = np.mean([fit.ci95_low < shape < fit.ci95_high for fit in fits])
    assert covered == pytest.approx(0.95, abs=0.025)


@pytest.mark.parametrize("gaps_s", [[], [1.0], [2.0, 2.0, 2.0]])
def test_no_fit_without_two_different_gaps(gaps_s):
    assert fit_weibull(np.array(gaps_s)) is None


def test_a_fit_refuses_zero_gaps():
    with pytest.raises(ValueError, match="merge failures of one instant"):
        fit_weibull(np.array([0.0, 1.0]))


def test_gaps_are_between_distinct_instants():
    failures = [Failure(t * S, m, "hardware") for t, m in ((1, 0), (1, 1), (4, 0), (4, 0), (9, 2))]
    assert interarrival_gaps_s(trace_of(failures, span_ns=10 * S)).tolist() == [3.0, 5.0]


def test_a_poisson_trace_looks_like_one():
    marks = Marks(hardware_repair=UniformRepair(3600.0, 7200.0))
    process = PoissonFailures(200, 0.05 / 86_400, marks=marks)
    found = trace_statistics(to_trace(process, 1, 365 * DAY_NS, name="poisson"))
    assert found.interarrival.ci95_low < 1.0 < found.interarrival.ci95_high
    assert found.interarrival.cv == pytest.approx(1.0, abs=0.05)
    assert found.failures_per_machine_day == pytest.approx(0.05, rel=0.07)
    assert found.repair_s.median == pytest.approx(5400.0, rel=0.02)
    assert found.mean_machines_down == pytest.approx(10 * 1.5 / 24, rel=0.07)
    # 10 a day: two within a minute of each other about once in 14 days.
    expected = 3650 * 10 / 1440
    assert len(found.simultaneous_groups) == pytest.approx(expected, abs=4 * expected**0.5)


@pytest.mark.skipif(
    not (SHARED / "infinitehbd").is_dir(), reason="the InfiniteHBD trace is not on this computer"
)
def test_infinitehbd_as_published():
    imported = import_infinitehbd(SHARED / "infinitehbd" / "fault_trace.json.gz")
    found = trace_statistics(imported.trace)
    assert (found.failures, found.machines, found.machines_that_failed) == (584, 400, 231)
    assert found.simultaneous_groups[:3] == (14, 9, 6)
    assert trace_statistics(imported.trace, within_ns=0).simultaneous_groups[:3] == (8, 8, 6)
    assert found.failures_per_machine_day == pytest.approx(0.0042, abs=5e-5)
    # SOURCE.md: mean repair 133 h.
    assert found.repair_s.mean == pytest.approx(133 * 3600, rel=0.005)
    # Down machines by Little's law, less overlaps and what lies beyond the end.
    little = 584 * found.repair_s.mean / found.span_s
    assert 0.98 * little < found.mean_machines_down < little
    assert 0.55 < found.interarrival.weibull_shape < 0.7


@pytest.mark.skipif(
    not (SHARED / "lanl-2005").is_dir(), reason="the LANL trace is not on this computer"
)
def test_lanl_20_has_the_shape_that_schroeder_and_gibson_report():
    path = next((SHARED / "lanl-2005").glob("*.csv.xz"))
    found = trace_statistics(import_lanl(path, 20).trace)
    assert found.failures == 2478
    # DSN 2006: system-wide gaps of system 20 fit a Weibull of decreasing hazard, early years
    # with many failures at one instant.
    assert found.interarrival.ci95_high < 0.8
    assert found.interarrival.cv > 1.0
