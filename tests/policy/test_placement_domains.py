"""Copies in different failure domains: as far apart as balance allows, checked by brute force."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_policy.placement import Placement, domain_placement, group_placement


def reach(placement: Placement, domains: list[int]) -> tuple[int, ...]:
    """Shards whose copies lie in at least 2, 3, ..., m domains."""
    spreads = [len({domains[holder] for holder in holders}) for holders in placement.replicas]
    copies = placement.replica_count
    return tuple(sum(spread >= least for spread in spreads) for least in range(2, copies + 1))


def best_reach(domains: list[int], replicas: int) -> tuple[int, ...]:
    """The best of all placements in which machines receive within one of m - 1 copies.

    Sums of tuples keep their order when the same is added to both, so of each pattern of loads only
    the best has to be kept.
    """
    machines = len(domains)
    best: dict[tuple[int, ...], tuple[int, ...]] = {(0,) * machines: (0,) * (replicas - 1)}
    for shard in range(machines):
        others = [machine for machine in range(machines) if machine != shard]
        after: dict[tuple[int, ...], tuple[int, ...]] = {}
        for loads, reached in best.items():
            for holders in itertools.combinations(others, replicas - 1):
                if any(loads[holder] == replicas for holder in holders):
                    continue
                new = tuple(load + (machine in holders) for machine, load in enumerate(loads))
                spread = len({domains[shard], *(domains[holder] for holder in holders)})
                value = tuple(r + (spread >= least) for least, r in enumerate(reached, start=2))
                if after.get(new, (-1,)) < value:
                    after[new] = value
        best = after
    return max(value for loads, value in best.items() if min(loads) >= replicas - 2)


def partitions(total: int, largest: int | None = None) -> Iterator[tuple[int, ...]]:
    if total == 0:
        yield ()
        return
    for first in range(min(total, largest or total), 0, -1):
        for rest in partitions(total - first, first):
            yield (first, *rest)


@pytest.mark.parametrize(
    ("machines", "replicas"),
    [(3, 2), (3, 3), (4, 2), (4, 3), (5, 2), (5, 3), (6, 2), (6, 3), (7, 2)],
)
def test_no_balanced_placement_reaches_more_domains(machines: int, replicas: int) -> None:
    for sizes in partitions(machines):
        domains = [domain for domain, size in enumerate(sizes) for _ in range(size)]
        random.Random(machines).shuffle(domains)
        placement = domain_placement(machines, replicas, domains)
        assert reach(placement, domains) == best_reach(domains, replicas), sizes


@pytest.mark.long
def test_a_shard_in_one_domain_is_served_before_a_shard_in_two() -> None:
    # Plain groups would give two shards three domains and leave two with one.
    domains = [0] * 6 + [1, 2]
    assert reach(domain_placement(8, 3, domains), domains) == best_reach(domains, 3) == (8, 0)


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[int], int]:
    domains = draw(st.lists(st.integers(0, 9), min_size=1, max_size=60))
    return domains, draw(st.integers(1, min(6, len(domains))))


@given(clusters())
def test_loads_stay_within_one_and_are_equal_where_that_costs_nothing(
    cluster: tuple[list[int], int],
) -> None:
    domains, replicas = cluster
    machines = len(domains)
    placement = domain_placement(machines, replicas, domains)
    received = [len(placement.shards_on(machine)) - 1 for machine in range(machines)]
    assert all(abs(count - (replicas - 1)) <= 1 for count in received)
    largest = max(Counter(domains).values())
    if largest <= machines // replicas:
        # The theorem in the module's header: full spread and equal loads together.
        assert reach(placement, domains) == (machines,) * (replicas - 1)
        assert received == [replicas - 1] * machines


@given(st.integers(1, 6), st.integers(1, 12), st.integers(1, 4))
def test_equal_domains_get_plain_groups_only(replicas: int, size: int, multiple: int) -> None:
    domains = [domain for domain in range(replicas * multiple) for _ in range(size)]
    placement = domain_placement(len(domains), replicas, domains)
    assert len(placement.host_sets()) == len(domains) // replicas
    # And few sets of domains that must not fail together.
    assert len({tuple(sorted(domains[m] for m in g)) for g in placement.groups}) == multiple


def test_the_ring_is_as_small_as_the_domains_allow() -> None:
    # 3 + 5 would need five domains; with four, all eight have to close one ring.
    assert len(domain_placement(8, 3, [0, 0, 1, 1, 2, 2, 3, 3]).groups) == 1
    # With five domains, three machines form a group and five the ring.
    groups = domain_placement(8, 3, [0, 0, 1, 1, 2, 2, 3, 4]).groups
    assert sorted(map(len, groups)) == [3, 5]


def test_one_domain_is_algorithm_1() -> None:
    for machines, replicas in ((8, 2), (9, 2), (11, 4)):
        one = domain_placement(machines, replicas, [5] * machines)
        assert one.replicas == group_placement(machines, replicas).replicas


def test_machines_without_a_partner_attach_to_others() -> None:
    domains = [0] * 5 + [1] * 3
    placement = domain_placement(8, 2, domains)
    assert reach(placement, domains) == (8,)
    assert len(placement.host_sets()) == 5


@given(clusters(), st.integers(-3, 3))
def test_names_of_domains_do_not_matter(cluster: tuple[list[int], int], shift: int) -> None:
    domains, replicas = cluster
    renamed = [domain * 7 + shift for domain in domains]
    first = domain_placement(len(domains), replicas, domains)
    assert first == domain_placement(len(domains), replicas, renamed)


def test_a_domain_for_each_machine_is_needed() -> None:
    with pytest.raises(ValueError, match="give one domain for each machine"):
        domain_placement(4, 2, [0, 1, 0])
