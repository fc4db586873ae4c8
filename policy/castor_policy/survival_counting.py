"""Exact counting for placements without a closed form.

Machines that share no shard, directly or through others, fail and survive apart from each other,
so each such component is counted by itself and the counts are combined. Two methods count a
component, and each refuses where its work would explode:

* a frontier: machines are decided one after the other, and of the past only matters which host
  sets are all failed so far. Cheap where few host sets are open at a time;
* unions: inclusion and exclusion over the unions of host sets, up to the number of failures asked
  for. Cheap where few failures are asked for, however many machines there are.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import comb

from castor_policy.host_sets import connected_groups

HostSets = tuple[tuple[int, ...], ...]
"""Sets of machines that hold one shard, numbered from 0 within their component, sorted."""

_MOST_STATES = 30_000
_MOST_WORK_BITS = 20_000_000_000
_MOST_UNION_STEPS = 2_000_000
_MOST_HELD_BITS = 2_000_000_000
"""Sets are kept as bits of integers: a quarter of a gigabyte of them at most."""
_MOST_MASK_BITS = 300_000_000
"""Machines times host sets: what the frontier's own tables take."""
_MOST_PRODUCT_STEPS = 6_000_000
_MOST_CANDIDATES = 64


class ExactCountTooLargeError(ValueError):
    """Counting would take too long; `estimate_recovery_probability` gives an interval instead."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} are too many to count exactly; use estimate_recovery_probability "
            "or exact_or_estimate"
        )


@dataclass(frozen=True, slots=True)
class Component:
    """Machines linked through the shards that they hold for each other.

    Attributes:
        kind: "group" (every member holds every member's shard), "ring" (each sends to the next
            m - 1 of a cycle longer than m), or "other".
        machines: how many.
        replicas: copies of each shard, m.
        host_sets: the distinct host sets of an "other" one; empty for groups and rings, which
            their sizes describe.
    """

    kind: str
    machines: int
    replicas: int
    host_sets: HostSets = ()


def components(replicas: Sequence[Sequence[int]]) -> Counter[Component]:
    """Split a placement into its components, equal ones counted together, in order of machines."""
    return Counter(_classify(replicas, group) for group in connected_groups(replicas))


def _classify(replicas: Sequence[Sequence[int]], members: Sequence[int]) -> Component:
    copies = len(replicas[members[0]])
    if len(members) == copies:
        return Component("group", copies, copies)
    if copies > 1:
        # In a ring the second holder of each shard is the next machine.
        cycle = [members[0]]
        while (following := replicas[cycle[-1]][1]) != members[0] and len(cycle) < len(members):
            cycle.append(following)
        if len(set(cycle)) == len(members):
            twice = (*cycle, *cycle)
            if all(
                set(replicas[machine]) == set(twice[index : index + copies])
                for index, machine in enumerate(cycle)
            ):
                return Component("ring", len(members), copies)
    number = {machine: index for index, machine in enumerate(members)}
    host_sets = {tuple(sorted(number[holder] for holder in replicas[m])) for m in members}
    return Component("other", len(members), copies, tuple(sorted(host_sets)))


def count_component(component: Component, failures: int | None = None) -> list[int]:
    """Count an "other" component's survivable sets of 0, 1, 2, ... failures.

    Args:
        component: the component.
        failures: count no further than this many; None counts all.

    Raises:
        ExactCountTooLargeError: neither method can do it in a bounded amount of work.
    """
    most = component.machines if failures is None else min(failures, component.machines)
    methods = [_count_by_frontier, _count_by_unions]
    if most < 2 * component.replicas:
        methods.reverse()
    try:
        return methods[0](component, most)
    except ExactCountTooLargeError:
        return methods[1](component, most)


def _count_by_frontier(component: Component, most: int) -> list[int]:
    machines, sets = component.machines, len(component.host_sets)
    if machines * sets > _MOST_MASK_BITS:
        raise ExactCountTooLargeError(f"the failures of {machines} linked machines")
    # One large integer holds the counts of 0, 1, 2, ... failures, `width` bits each; one failure
    # more shifts it by that.
    width = machines + 1
    mask = (1 << width * (most + 1)) - 1
    frontier = Frontier(machines, component.host_sets)
    states = {0: 1}
    work = 0
    for machine in frontier.order:
        states = frontier.step(states, machine, fail=1 << width, live=1, mask=mask)
        work += len(states) * (sets + width * (most + 1) + 4096)
        if (
            work > _MOST_WORK_BITS
            or len(states) > _MOST_STATES
            or len(states) * (sets + width * (most + 1)) > _MOST_HELD_BITS
        ):
            raise ExactCountTooLargeError(f"the failures of {machines} linked machines")
    packed = sum(states.values())
    return [packed >> width * failed & (1 << width) - 1 for failed in range(most + 1)]


def _count_by_unions(component: Component, most: int) -> list[int]:
    by_size: Counter[int] = Counter()
    for union, coefficient in _signed_unions(component, most).items():
        by_size[union.bit_count()] += coefficient
    return [
        sum(
            coefficient * comb(component.machines - size, failed - size)
            for size, coefficient in by_size.items()
            if size <= failed
        )
        for failed in range(most + 1)
    ]


def _signed_unions(component: Component, most: int) -> dict[int, int]:
    """Return the unions of up to ``most`` machines with their inclusion-exclusion coefficients."""
    unions = {0: 1}
    # Below twice m failures, only unions that share a machine are small enough to be joined.
    only_sharing = most < 2 * component.replicas
    sharing: list[dict[int, None]] = [{} for _ in range(component.machines)]
    steps = 0
    for members in component.host_sets:
        lost = sum(1 << machine for machine in members)
        candidates: Iterable[int] = unions
        if only_sharing:
            candidates = dict.fromkeys((0, *(u for machine in members for u in sharing[machine])))
        changes: Counter[int] = Counter()
        for union in candidates:
            if (union | lost).bit_count() <= most:
                changes[union | lost] -= unions[union]
            steps += 1
        if steps > _MOST_UNION_STEPS or len(unions) * component.machines > _MOST_HELD_BITS:
            raise ExactCountTooLargeError(f"the failures of {component.machines} linked machines")
        for union, change in changes.items():
            unions[union] = unions.get(union, 0) + change
            if only_sharing:
                for machine in _bits(union):
                    sharing[machine][union] = None
    return unions


def _bits(number: int) -> Iterator[int]:
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest


def multiply_counts(factors: Iterable[tuple[Sequence[int], int]], failures: int) -> int:
    """Count the survivable sets of ``failures`` failures over components that repeat.

    With P_i(x) the counts of a component that occurs e_i times, the product F = prod P_i^e_i
    satisfies F' Q = F sum_i e_i P_i' prod_(j != i) P_j, Q = prod P_i. Compared power by power, that
    gives each coefficient of F from the few before it, so thousands of equal small components cost
    no more than one.

    Args:
        factors: (counts of 0, 1, ... failures, how often), each starting with 1.
        failures: k.

    Raises:
        ExactCountTooLargeError: the components are too large and too different.
    """
    bases = [(list(counts[: failures + 1]), times) for counts, times in factors]
    degree = min(failures, sum(len(counts) - 1 for counts, _ in bases))
    if degree * failures > _MOST_PRODUCT_STEPS:
        raise ExactCountTooLargeError("the components' failures")
    denominator, numerator = _logarithmic_derivative(bases, failures)
    coefficients = [1]
    for power in range(1, failures + 1):
        value = 0
        for back in range(1, min(power, degree + 1) + 1):
            before = coefficients[power - back]
            if before:
                weight = numerator[back - 1]
                if back < len(denominator):
                    weight -= denominator[back] * (power - back)
                value += weight * before
        coefficients.append(value // power)
    return coefficients[failures]


def _logarithmic_derivative(
    bases: Sequence[tuple[Sequence[int], int]], failures: int
) -> tuple[list[int], list[int]]:
    """Return Q and sum_i e_i P_i' prod_(j != i) P_j, up to the power ``failures``."""
    denominator = [1]
    for counts, _ in bases:
        denominator = _product(denominator, counts, failures)
    numerator = [0] * (failures + 1)
    for index, (counts, times) in enumerate(bases):
        part = [times * power * count for power, count in enumerate(counts)][1:]
        for other, (others, _) in enumerate(bases):
            if other != index:
                part = _product(part, others, failures)
        for power, value in enumerate(part):
            numerator[power] += value
    return denominator, numerator


def _product(left: Sequence[int], right: Sequence[int], most: int) -> list[int]:
    product = [0] * min(len(left) + len(right) - 1, most + 1)
    for power, value in enumerate(left):
        for more, factor in enumerate(right[: len(product) - power]):
            product[power + more] += value * factor
    return product


class Frontier:
    """Decide machines one by one, keeping which host sets are all failed so far.

    A state is a bit set of the host sets that are begun and of which no member lives yet; it maps
    to a weight: a count, packed counts, or a probability's numerator.

    Args:
        machines: how many, numbered from 0.
        host_sets: distinct sets of them.
        order: the order to decide them in; by default one that keeps few host sets open.
    """

    def __init__(
        self, machines: int, host_sets: HostSets, order: Sequence[int] | None = None
    ) -> None:
        self.order = tuple(order) if order is not None else narrow_order(machines, host_sets)
        when = {machine: turn for turn, machine in enumerate(self.order)}
        self._begins = [0] * machines
        self._contains = [0] * machines
        self._ends = [0] * machines
        for index, members in enumerate(host_sets):
            bit = 1 << index
            self._begins[min(members, key=lambda machine: when[machine])] |= bit
            self._ends[max(members, key=lambda machine: when[machine])] |= bit
            for machine in members:
                self._contains[machine] |= bit

    def step(
        self,
        states: dict[int, int],
        machine: int,
        *,
        fail: int,
        live: int,
        mask: int | None = None,
    ) -> dict[int, int]:
        """Return the states after ``machine``: weights times ``fail`` or ``live``, losses dropped.

        ``mask`` keeps the low bits of packed counts.
        """
        begins, contains, ends = (
            self._begins[machine],
            self._contains[machine],
            self._ends[machine],
        )
        after: dict[int, int] = {}
        for state, weight in states.items():
            if live:
                kept = state & ~contains
                after[kept] = after.get(kept, 0) + weight * live
            failed = state | begins
            if fail and not failed & ends:
                more = weight * fail if mask is None else weight * fail & mask
                if more:
                    after[failed] = after.get(failed, 0) + more
        return after


def narrow_order(machines: int, host_sets: HostSets) -> tuple[int, ...]:
    """Order machines greedily: next the one that opens fewest host sets, closing most."""
    sets_of: list[list[int]] = [[] for _ in range(machines)]
    for index, members in enumerate(host_sets):
        for machine in members:
            sets_of[machine].append(index)
    left = [len(members) for members in host_sets]
    undecided = dict.fromkeys(sorted(range(machines), key=lambda m: (len(sets_of[m]), m)))
    near: dict[int, None] = {}
    order: list[int] = []
    while undecided:
        machine = min(
            itertools.islice(near, _MOST_CANDIDATES) if near else [next(iter(undecided))],
            key=lambda candidate: (
                sum(
                    (left[index] == len(host_sets[index])) - (left[index] == 1)
                    for index in sets_of[candidate]
                ),
                candidate,
            ),
        )
        order.append(machine)
        del undecided[machine]
        near.pop(machine, None)
        for index in sets_of[machine]:
            left[index] -= 1
            near.update(dict.fromkeys(m for m in host_sets[index] if m in undecided))
    return tuple(order)
