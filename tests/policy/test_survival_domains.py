"""Survival when domains go down whole: brute force, limits, and sampling."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction
from math import exp

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castor_policy import survival_domains
from castor_policy.placement import Placement, place
from castor_policy.survival import ExactCountTooLargeError, independent_recovery_probability
from castor_policy.survival_domains import domain_recovery_probability, failure_probability


def by_brute_force(
    placement: Placement, domains: list[int], down: Fraction, fail: Fraction
) -> Fraction:
    names = sorted(set(domains))
    total = Fraction(0)
    for pattern in itertools.product((False, True), repeat=len(names)):
        lost = {name for name, is_down in zip(names, pattern, strict=True) if is_down}
        live = [m for m in range(placement.machines) if domains[m] not in lost]
        weight = down ** len(lost) * (1 - down) ** (len(names) - len(lost))
        for fails in itertools.product((False, True), repeat=len(live)):
            failed = set(range(placement.machines)) - set(live)
            failed |= {machine for machine, bad in zip(live, fails, strict=True) if bad}
            if placement.survives(failed):
                total += weight * fail ** sum(fails) * (1 - fail) ** (len(live) - sum(fails))
    return total


CHANCES = st.sampled_from([Fraction(0), Fraction(1, 5), Fraction(1, 2), Fraction(1)])


@given(
    st.integers(1, 8),
    st.data(),
    st.sampled_from(["group", "ring", "random", "domains"]),
    CHANCES,
    CHANCES,
)
@settings(max_examples=3 * settings.default.max_examples // 2)
def test_both_methods_against_all_subsets(
    machines: int, data: st.DataObject, strategy: str, down: Fraction, fail: Fraction
) -> None:
    replicas = data.draw(st.integers(1, min(4, machines)))
    domains = data.draw(st.lists(st.integers(0, 3), min_size=machines, max_size=machines))
    placement = place(strategy, machines, replicas, domains=domains, rng=random.Random(machines))
    expected = by_brute_force(placement, domains, down, fail)
    found = domain_recovery_probability(
        placement, domains, domain_probability=down, machine_probability=fail
    )
    assert found.exact == expected
    chances = survival_domains._Chances(down, fail)
    by_patterns = Fraction(1)
    for part, times in survival_domains._parts(placement, domains).items():
        scale = fail.denominator ** len(part.domain_of) * down.denominator**part.domain_count
        by_patterns *= Fraction(survival_domains._by_patterns(part, chances), scale) ** times
    assert by_patterns == expected


@pytest.mark.parametrize("strategy", ["group", "mixed", "ring"])
def test_without_domain_failures_machines_are_independent(strategy: str) -> None:
    placement = place(strategy, 35, 3)
    alone = domain_recovery_probability(
        placement, [m // 5 for m in range(35)], domain_probability=0, machine_probability=0.125
    )
    assert alone.exact == independent_recovery_probability(placement, 0.125)


def test_racks_are_what_neighbouring_groups_do_not_survive() -> None:
    racks = [machine // 8 for machine in range(64)]
    down = Fraction(1, 1000)
    group = domain_recovery_probability(
        place("group", 64, 2), racks, domain_probability=down, machine_probability=0
    )
    spread = domain_recovery_probability(
        place("domains", 64, 2, domains=racks),
        racks,
        domain_probability=down,
        machine_probability=0,
    )
    assert group.exact == (1 - down) ** 8  # any rack loses its groups
    assert spread.exact == (1 - down**2) ** 4  # four pairs of racks


def test_thousands_of_machines_in_racks_are_exact() -> None:
    racks = [machine // 512 for machine in range(4096)]
    placement = place("domains", 4096, 2, domains=racks)
    down, fail = Fraction(1, 100), Fraction(1, 1000)
    found = domain_recovery_probability(
        placement, racks, domain_probability=down, machine_probability=fail
    )
    one_pair = (1 - down) ** 2 * (1 - fail**2) ** 512 + 2 * down * (1 - down) * (1 - fail) ** 512
    assert found.exact == one_pair**4


def test_what_cannot_be_counted_is_sampled_and_right() -> None:
    rng = random.Random(2)
    racks = [machine // 20 for machine in range(600)]
    placement = place("random", 600, 3, rng=rng)
    with pytest.raises(ExactCountTooLargeError):
        domain_recovery_probability(
            placement, racks, domain_probability=0.02, machine_probability=0.05
        )
    found = domain_recovery_probability(
        placement, racks, domain_probability=0.02, machine_probability=0.05, samples=500, rng=rng
    )
    assert found.method == "monte-carlo"
    assert found.estimate is not None
    assert found.estimate.samples == 500


def test_samples_cover_an_exact_value(monkeypatch: pytest.MonkeyPatch) -> None:
    racks = [machine // 4 for machine in range(24)]
    placement = place("ring", 24, 2)
    exact = domain_recovery_probability(
        placement, racks, domain_probability=0.05, machine_probability=0.05
    ).exact
    assert exact is not None

    def refuse(*_: object) -> Fraction:
        raise ExactCountTooLargeError("the test's machines")

    monkeypatch.setattr(survival_domains, "_exact", refuse)
    rng = random.Random(4)
    hits = 0
    for _ in range(200):
        found = domain_recovery_probability(
            placement,
            racks,
            domain_probability=0.05,
            machine_probability=0.05,
            samples=100,
            rng=rng,
        )
        assert found.estimate is not None
        hits += found.estimate.low <= exact <= found.estimate.high
    # 200 intervals of 95 %: fewer than 178 hits has a probability below 1e-4 (binomial).
    assert hits >= 178


def test_draws_have_the_asked_probability() -> None:
    rng = random.Random(9)
    counts = [0] * 5
    for _ in range(20_000):
        for index in survival_domains._draw(5, 0.3, rng):
            counts[index] += 1
    # 6000 expected, standard deviation 65: five of them within 4.5 deviations.
    assert all(abs(count - 6000) < 292 for count in counts)
    assert list(survival_domains._draw(4, 0.0, rng)) == []
    assert list(survival_domains._draw(4, 1.0, rng)) == [0, 1, 2, 3]


def test_rates() -> None:
    assert failure_probability(0.0, 100.0) == 0
    assert failure_probability(1e-12, 1.0) == pytest.approx(1e-12, rel=1e-9)
    assert failure_probability(0.5, 4.0) == pytest.approx(1 - exp(-2))
    with pytest.raises(ValueError, match="must not be negative"):
        failure_probability(-1.0, 1.0)
    with pytest.raises(ValueError, match="must not be negative"):
        failure_probability(float("nan"), 1.0)


def test_wrong_arguments_are_told_what_to_do() -> None:
    placement = place("ring", 4, 2)
    with pytest.raises(ValueError, match="give one domain for each machine"):
        domain_recovery_probability(
            placement, [0, 1], domain_probability=0.1, machine_probability=0.1
        )
    with pytest.raises(ValueError, match="domain_probability is 2; use a probability"):
        domain_recovery_probability(
            placement, [0, 1, 2, 3], domain_probability=2, machine_probability=0.1
        )
