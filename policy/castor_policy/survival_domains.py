"""Survival when machines fail together: racks, switches and power feeds that go down whole.

Within the window looked at (say, the time that recovery takes), each failure domain goes down with
one probability, and each machine besides with another, all independently. The paper treats
independent machines only (sec. 4), and puts neighbours into one group.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import expm1, log, log1p

from castor_policy.host_sets import connected_groups
from castor_policy.placement import Placement
from castor_policy.survival import (
    ExactCountTooLargeError,
    RecoveryProbability,
    as_probability,
    wilson_interval,
)
from castor_policy.survival_counting import Frontier, HostSets, narrow_order

_MOST_STATES = 4096
_MOST_WORK_BITS = 30_000_000_000
_MOST_PATTERN_STEPS = 1 << 21


def failure_probability(rate_per_s: float, window_s: float) -> float:
    """Return the probability of at least one failure in a window: 1 - exp(-rate * window).

    Args:
        rate_per_s: failures a second of what may fail, a Poisson process; >= 0.
        window_s: length of the window in seconds; >= 0.

    Raises:
        ValueError: a negative rate or window.
    """
    if not rate_per_s >= 0 or not window_s >= 0:
        raise ValueError(f"rate {rate_per_s}/s and window {window_s} s must not be negative")
    return -expm1(-rate_per_s * window_s)


def domain_recovery_probability(
    placement: Placement,
    domains: Sequence[int],
    *,
    domain_probability: float | Fraction,
    machine_probability: float | Fraction,
    samples: int = 20_000,
    rng: random.Random | None = None,
) -> RecoveryProbability:
    """Return the probability that what fails in one window can be recovered from CPU memory.

    Exact where parts of the cluster that share neither shards nor domains are small or narrow;
    sampled with a 95 % interval elsewhere.

    Args:
        placement: where the shards' copies lie.
        domains: the domain of each machine.
        domain_probability: that a domain goes down whole, each on its own.
        machine_probability: that a machine fails besides, each on its own.
        samples: how many windows to draw where it cannot be counted.
        rng: what to draw them with; without it, too large a count is an error.

    Raises:
        ExactCountTooLargeError: it cannot be counted and there is no ``rng``.
        ValueError: a probability outside 0..1, a wrong number of domains, or no samples.
    """
    if len(domains) != placement.machines:
        raise ValueError(
            f"domains names {len(domains)} machines and the placement has {placement.machines}; "
            "give one domain for each machine"
        )
    chances = _Chances(
        as_probability("domain_probability", domain_probability),
        as_probability("machine_probability", machine_probability),
    )
    try:
        return RecoveryProbability(_exact(placement, domains, chances), None)
    except ExactCountTooLargeError:
        if rng is None:
            raise
    members = [list(group) for group in _domain_members(domains).values()]
    recovered = 0
    for _ in range(samples):
        down = set(_draw(placement.machines, float(chances.machine), rng))
        for domain in _draw(len(members), float(chances.domain), rng):
            down.update(members[domain])
        recovered += placement.survives(down)
    return RecoveryProbability(None, wilson_interval(recovered, samples))


@dataclass(frozen=True, slots=True)
class _Chances:
    """Probabilities that a domain, and besides a machine, fails in the window."""

    domain: Fraction
    machine: Fraction


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of the cluster that shares neither a shard nor a domain with the rest."""

    domain_of: tuple[int, ...]
    host_sets: HostSets

    @property
    def domain_count(self) -> int:
        return max(self.domain_of) + 1


def _exact(placement: Placement, domains: Sequence[int], chances: _Chances) -> Fraction:
    probability = Fraction(1)
    for part, times in _parts(placement, domains).items():
        try:
            numerator = _by_frontier(part, chances)
        except ExactCountTooLargeError:
            numerator = _by_patterns(part, chances)
        denominator = (
            chances.machine.denominator ** len(part.domain_of)
            * chances.domain.denominator**part.domain_count
        )
        probability *= Fraction(numerator, denominator) ** times
    return probability


def _parts(placement: Placement, domains: Sequence[int]) -> Counter[_Part]:
    first = {domain: members[0] for domain, members in _domain_members(domains).items()}
    linked = connected_groups(
        [
            (*holders, first[domain])
            for holders, domain in zip(placement.replicas, domains, strict=True)
        ]
    )
    parts: Counter[_Part] = Counter()
    for members in linked:
        machine_number = {machine: index for index, machine in enumerate(members)}
        domain_number: dict[int, int] = {}
        for machine in members:
            domain_number.setdefault(domains[machine], len(domain_number))
        host_sets = {
            tuple(sorted(machine_number[holder] for holder in placement.replicas[machine]))
            for machine in members
        }
        domain_of = tuple(domain_number[domains[machine]] for machine in members)
        parts[_Part(domain_of, tuple(sorted(host_sets)))] += 1
    return parts


def _by_frontier(part: _Part, chances: _Chances) -> int:
    """Decide domain by domain, and in a live one machine by machine; see `Frontier`.

    Returns the probability's numerator over machine^machines * domain^domains denominators.
    """
    machines = len(part.domain_of)
    members = _domain_members(part.domain_of)
    among_domains = {tuple(sorted({part.domain_of[m] for m in hosts})) for hosts in part.host_sets}
    order = narrow_order(part.domain_count, tuple(sorted(among_domains)))
    frontier = Frontier(
        machines, part.host_sets, [machine for domain in order for machine in members[domain]]
    )
    fail, scale = chances.machine.numerator, chances.machine.denominator
    down, domain_scale = chances.domain.numerator, chances.domain.denominator
    bits = machines * scale.bit_length() + part.domain_count * domain_scale.bit_length()
    work = 0
    states = {0: 1}
    for domain in order:
        whole = {state: weight * down for state, weight in states.items() if down}
        single = {
            state: weight * (domain_scale - down)
            for state, weight in states.items()
            if down != domain_scale
        }
        for machine in members[domain]:
            whole = frontier.step(whole, machine, fail=scale, live=0)
            single = frontier.step(single, machine, fail=fail, live=scale - fail)
            work += (len(whole) + len(single)) * (bits + 4096)
            if len(single) > _MOST_STATES or work > _MOST_WORK_BITS:
                raise ExactCountTooLargeError(f"the failures of {machines} linked machines")
        states = single
        for state, weight in whole.items():
            states[state] = states.get(state, 0) + weight
    return sum(states.values())


def _by_patterns(part: _Part, chances: _Chances) -> int:
    """Sum over which domains are down. Groups with members in the same domains count together."""
    fail, scale = chances.machine.numerator, chances.machine.denominator
    down, domain_scale = chances.domain.numerator, chances.domain.denominator
    machines, domain_count = len(part.domain_of), part.domain_count
    bits = machines * scale.bit_length() + domain_count * domain_scale.bit_length()
    copies = len(part.host_sets[0])
    groups, others = _split(part)
    steps = (1 << domain_count) * (len(groups) + 1)
    if domain_count > 20 or steps > _MOST_PATTERN_STEPS:
        raise ExactCountTooLargeError(f"the failures of {domain_count} linked domains")
    alike: Counter[tuple[int, int, tuple[tuple[int, int], ...]]] = Counter()
    in_others = {machine for host_sets in others for hosts in host_sets for machine in hosts}
    linked_domains = sum(1 << domain for domain in {part.domain_of[m] for m in in_others})
    for pattern in range(1 << domain_count):
        live: Counter[int] = Counter()
        for hosts, times in groups.items():
            live[sum(not pattern >> domain & 1 for domain in hosts)] += times
        alike[(pattern.bit_count(), pattern & linked_domains, tuple(sorted(live.items())))] += 1
    if len(alike) * (bits + 4096) * (1 + 8 * sum(map(len, others))) > _MOST_WORK_BITS:
        raise ExactCountTooLargeError(f"the failures of {domain_count} linked domains")
    total = 0
    for (downs, pattern, live_items), patterns in alike.items():
        weight = patterns * down**downs * (domain_scale - down) ** (domain_count - downs)
        for live_members, times in live_items:
            survives = scale**live_members - fail**live_members
            weight *= (scale ** (copies - live_members) * survives) ** times
        for host_sets in others:
            if weight:
                weight *= _given_pattern(part, host_sets, pattern, fail, scale)
        total += weight
    return total


def _split(part: _Part) -> tuple[Counter[tuple[int, ...]], list[HostSets]]:
    """Return the plain groups, as the domains of their members, and the other host sets by link."""
    sets_of: list[list[tuple[int, ...]]] = [[] for _ in part.domain_of]
    for hosts in part.host_sets:
        for machine in hosts:
            sets_of[machine].append(hosts)
    linked = connected_groups([[m for hosts in own for m in hosts] for own in sets_of])
    groups: Counter[tuple[int, ...]] = Counter()
    others: list[HostSets] = []
    for members in linked:
        host_sets = tuple(sorted({hosts for machine in members for hosts in sets_of[machine]}))
        if len(host_sets) == 1:
            groups[tuple(sorted(part.domain_of[machine] for machine in members))] += 1
        else:
            others.append(host_sets)
    return groups, others


def _given_pattern(part: _Part, host_sets: HostSets, pattern: int, fail: int, scale: int) -> int:
    """Return the numerator of survival of linked host sets, given which domains are down."""
    members = sorted({machine for hosts in host_sets for machine in hosts})
    number = {machine: index for index, machine in enumerate(members)}
    renumbered = tuple(tuple(number[machine] for machine in hosts) for hosts in host_sets)
    frontier = Frontier(len(members), renumbered)
    states = {0: 1}
    for index in frontier.order:
        if pattern >> part.domain_of[members[index]] & 1:
            states = frontier.step(states, index, fail=scale, live=0)
        else:
            states = frontier.step(states, index, fail=fail, live=scale - fail)
        if len(states) > _MOST_STATES:
            raise ExactCountTooLargeError(f"the failures of {len(members)} linked machines")
    return sum(states.values())


def _domain_members(domains: Sequence[int]) -> dict[int, list[int]]:
    members: dict[int, list[int]] = {}
    for machine, domain in enumerate(domains):
        members.setdefault(domain, []).append(machine)
    return dict(sorted(members.items()))


def _draw(count: int, probability: float, rng: random.Random) -> Iterator[int]:
    """Draw each of 0..count-1 with ``probability``, skipping over those that are not drawn."""
    if probability <= 0:
        return
    if probability >= 1:
        yield from range(count)
        return
    rate = log1p(-probability)
    index = -1
    for _ in itertools.repeat(None):
        # The gap to the next one drawn is geometric; 1 - random() is never 0.
        index += 1 + int(log(1 - rng.random()) / rate)
        if index >= count:
            return
        yield index
