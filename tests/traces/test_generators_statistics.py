"""Generated failures against the distributions that they claim. Seeds are fixed: no flicker."""

import math

import numpy as np
import pytest
from scipy import stats

from castor_traces.failure_stream import joined
from castor_traces.generators import (
    DomainFailures,
    EarlyFailures,
    Lemons,
    LognormalGaps,
    PoissonFailures,
    RegularFailures,
    RenewalFailures,
    WeibullGaps,
)
from castor_traces.marks import (
    Cause,
    ExponentialRepair,
    FixedRepair,
    LognormalRepair,
    Marks,
    UniformRepair,
)
from castor_traces.random_draws import Draws

DAY_S = 86_400.0
DAY_NS = 86_400 * 10**9
YEAR_NS = 365 * DAY_NS


def failures(process, horizon_ns, seed=1):
    return joined(list(process.blocks(seed, horizon_ns)))


def within_sigmas(count, expected, sigmas=4.0):
    return abs(count - expected) < sigmas * math.sqrt(expected)


def gaps_by_machine(block):
    """Gaps between consecutive failures of each machine, in days."""
    order = np.lexsort((block.time_ns, block.machine))
    same = np.diff(block.machine[order]) == 0
    return np.diff(block.time_ns[order])[same] / DAY_NS


def test_poisson_failures_have_their_rate_exponential_gaps_and_no_favourite_machine():
    block = failures(PoissonFailures(1000, 0.015 / DAY_S), YEAR_NS)
    assert within_sigmas(len(block), 1000 * 0.015 * 365)
    gaps_s = np.diff(block.time_ns) / 1e9
    assert stats.kstest(gaps_s, stats.expon(scale=DAY_S / 15).cdf).pvalue > 0.001
    counts = np.bincount(block.machine, minlength=1000)
    assert stats.chisquare(counts).pvalue > 0.001


def test_a_very_fast_and_a_very_slow_process_stay_exact():
    fast = failures(PoissonFailures(100, 10.0), 100 * 10**9)
    assert within_sigmas(len(fast), 100_000)
    assert len(list(PoissonFailures(1, 1e-15).blocks(1, 2**61))) == 0


def test_lemons_fail_as_much_more_often_as_they_say():
    process = PoissonFailures(200, 0.05 / DAY_S, Lemons(0.1, 10.0))
    counts = np.sort(np.bincount(failures(process, YEAR_NS).machine, minlength=200))
    # Means of 18 and 182 failures: the two classes cannot overlap.
    assert counts[:180].max() < counts[180:].min()
    assert within_sigmas(counts[:180].sum(), 180 * 0.05 * 365)
    assert within_sigmas(counts[180:].sum(), 20 * 0.5 * 365)
    assert stats.chisquare(counts[180:]).pvalue > 0.001


def test_lemons_are_other_machines_for_another_seed_and_fail_more_as_renewals_too():
    process = RenewalFailures(50, WeibullGaps(0.8, 40 * DAY_S), Lemons(0.1, 20.0))
    lemons = []
    for seed in (1, 2):
        counts = np.bincount(failures(process, YEAR_NS, seed).machine, minlength=50)
        lemons.append(set(np.argsort(counts)[-5:].tolist()))
    assert lemons[0] != lemons[1]


@pytest.mark.long
@pytest.mark.parametrize(
    ("gaps", "distribution"),
    [
        (WeibullGaps(0.7, 3 * DAY_S), stats.weibull_min(0.7, scale=3 / math.gamma(1 + 1 / 0.7))),
        (WeibullGaps(2.0, 3 * DAY_S), stats.weibull_min(2.0, scale=3 / math.gamma(1.5))),
        (LognormalGaps(0.8, 3 * DAY_S), stats.lognorm(0.8, scale=3 * math.exp(-0.32))),
    ],
    ids=["weibull-0.7", "weibull-2", "lognormal"],
)
def test_renewal_gaps_follow_their_distribution(gaps, distribution):
    block = failures(RenewalFailures(100, gaps), 20 * YEAR_NS)
    # Over 2,400 gaps a machine: those cut by the horizon are too few to bias the rest.
    assert stats.kstest(gaps_by_machine(block)[::20], distribution.cdf).pvalue > 0.001
    assert len(block) == pytest.approx(100 * 20 * 365 / 3, rel=0.02)


def test_a_warm_up_settles_the_rate_that_new_machines_exceed():
    gaps, machines = WeibullGaps(0.5, 60 * DAY_S), 3000
    month = 30 * DAY_NS
    new = len(failures(RenewalFailures(machines, gaps), month))
    old = len(failures(RenewalFailures(machines, gaps, warm_up_s=20 * 60 * DAY_S), month))
    settled = machines * 30 / 60
    assert new > 1.3 * settled
    # The count of a renewal process with cv^2 = 5 has up to five times Poisson's variance.
    assert abs(old - settled) < 4 * math.sqrt(5 * settled)


def test_early_failures_grow_rarer_by_their_power():
    process = EarlyFailures(2000, 0.5, 1.0, 30 * DAY_S)
    times = failures(process, 120 * DAY_NS).time_ns / DAY_NS
    assert within_sigmas(np.count_nonzero(times < 30), 2000)
    assert within_sigmas(np.count_nonzero(times < 7.5), 1000)
    assert within_sigmas(len(times), 4000)
    # Given their number, the instants are independent with distribution (t / horizon)^shape.
    assert stats.kstest((times / 120) ** 0.5, stats.uniform().cdf).pvalue > 0.001


def test_wear_out_grows_more_frequent():
    times = failures(EarlyFailures(100, 3.0, 5.0, 100 * DAY_S), 100 * DAY_NS).time_ns / DAY_NS
    assert within_sigmas(np.count_nonzero(times < 50), 500 / 8)


def test_domains_fail_at_their_rate():
    block = failures(DomainFailures(64, 8, 0.1 / DAY_S), YEAR_NS)
    events = len(np.unique(block.time_ns))
    assert len(block) == 8 * events
    assert within_sigmas(events, 8 * 36.5)


@pytest.mark.parametrize(
    ("repair", "distribution", "mean_s"),
    [
        (ExponentialRepair(100.0), stats.expon(scale=100), 100.0),
        (UniformRepair(240.0, 420.0), stats.uniform(240, 180), 330.0),
        (
            LognormalRepair(3600.0, 7200.0),
            stats.lognorm(math.sqrt(2 * math.log(2)), scale=3600),
            7200.0,
        ),
    ],
    ids=["exponential", "uniform", "lognormal"],
)
def test_repairs_follow_their_distribution(repair, distribution, mean_s):
    seconds = repair.durations_ns(Draws(1, "repairs").words(20_000)) / 1e9
    assert stats.kstest(seconds, distribution.cdf).pvalue > 0.001
    assert repair.mean_s == mean_s


def test_fixed_and_degenerate_repairs_are_exact():
    words = Draws(1, "repairs").words(50)
    assert set(FixedRepair(0.1).durations_ns(words).tolist()) == {100_000_000}
    assert set(LognormalRepair(60.0, 60.0).durations_ns(words).tolist()) == {60 * 10**9}
    assert UniformRepair(0.0, 1e-9).durations_ns(words).max() == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedRepair(-1.0), "fixed repair time"),
        (lambda: ExponentialRepair(math.inf), "exponential repair time"),
        (lambda: LognormalRepair(0.0, 1.0), "median"),
        (lambda: LognormalRepair(2.0, 1.0), "below its median"),
        (lambda: UniformRepair(2.0, 2.0), "high end"),
        (lambda: Marks(hardware_share=1.5), "0 to 1"),
        (lambda: Marks(causes=(Cause("a", True, 0),)), "weight of 1"),
        (lambda: Marks(causes=(Cause("a", True, 1), Cause("a", False, 1))), "name of its own"),
    ],
)
def test_bad_marks_say_what_is_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_kinds_and_causes_come_in_their_shares():
    share = failures(PoissonFailures(100, 1 / DAY_S, marks=Marks(hardware_share=0.8)), YEAR_NS)
    assert np.mean(share.hardware) == pytest.approx(0.8, abs=0.01)
    causes = (Cause("a", True, 5), Cause("b", False, 3), Cause("c", True, 2))
    marks = Marks(causes=causes, hardware_repair=FixedRepair(7.0), software_repair=FixedRepair(3.0))
    drawn = failures(PoissonFailures(100, 1 / DAY_S, marks=marks), YEAR_NS)
    counts = np.bincount(drawn.cause, minlength=3)
    assert stats.chisquare(counts, np.array([5, 3, 2]) / 10 * len(drawn)).pvalue > 0.001
    assert np.array_equal(drawn.hardware, drawn.cause != 1)
    assert np.array_equal(drawn.duration_ns == 7 * 10**9, drawn.hardware)
    assert np.array_equal(drawn.duration_ns == 3 * 10**9, ~drawn.hardware)


@pytest.mark.parametrize(
    "make",
    [
        lambda marks: PoissonFailures(200, 0.1 / DAY_S, None, marks, "none"),
        lambda marks: RenewalFailures(200, WeibullGaps(2.0, 10 * DAY_S), None, 0.0, marks, "none"),
        lambda marks: RenewalFailures(
            200, LognormalGaps(0.5, 10 * DAY_S), None, 0.0, marks, "none"
        ),
    ],
    ids=["poisson", "weibull", "lognormal"],
)
def test_availability_is_mtbf_over_mtbf_plus_mttr(make):
    """Mean up time 10 d and repair 2.5 d: 0.8. 200 machines over 5 years are 29,000 cycles."""
    process = make(Marks(hardware_repair=ExponentialRepair(2.5 * DAY_S)))
    horizon_ns = 5 * YEAR_NS
    block = failures(process, horizon_ns)
    down_ns = np.minimum(block.time_ns + block.duration_ns, horizon_ns) - block.time_ns
    availability = 1 - down_ns.sum() / (200 * horizon_ns)
    # One standard error: the share down of a cycle varies by about 0.2 / sqrt(29,000).
    assert availability == pytest.approx(0.8, abs=0.006)


def test_regular_failures_hit_all_machines_alike():
    block = failures(RegularFailures(20, 100.0), YEAR_NS)
    assert len(block) == 36_500
    assert stats.chisquare(np.bincount(block.machine, minlength=20)).pvalue > 0.001
