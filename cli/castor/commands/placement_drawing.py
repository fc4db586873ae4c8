"""Placements as text: who is linked with whom, and in which failure domains."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from castor_policy.placement import Placement

_DRAWN_MACHINES = 128


def domain_spread(made: Placement, domains: list[int]) -> dict[str, int]:
    """Count the shards by the number of different domains that hold them."""
    counts: dict[int, int] = {}
    for holders in made.replicas:
        spread = len({domains[holder] for holder in holders})
        counts[spread] = counts.get(spread, 0) + 1
    return {str(spread): counts[spread] for spread in sorted(counts)}


def spread_text(spread: dict[str, int]) -> str:
    """Say in words what `domain_spread` counted."""
    return ", ".join(f"{shards} shards in {count}" for count, shards in spread.items())


def drawing(made: Placement, domains: list[int] | None) -> list[str]:
    """Draw groups as [0 1], rings as (0 > 1 > 2 >), and else each shard's holders.

    Letters stand for failure domains. Of large clusters it only says how many are linked.
    """
    if made.machines > _DRAWN_MACHINES:
        sizes = sorted(len(group) for group in made.groups)
        linked = f"{sizes[0]}" if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"
        return [f"linked machines: {len(sizes)} x {linked}"]

    def name(machine: int) -> str:
        return str(machine) if domains is None else f"{machine}:{_letters(domains[machine])}"

    drawn = []
    for group in made.groups:
        if len(group) == made.replica_count:
            drawn.append(f"[{' '.join(name(machine) for machine in group)}]")
        elif cycle := _ring(made, group):
            drawn.append(f"({' > '.join(name(machine) for machine in cycle)} >)")
        else:
            drawn += [
                f"{name(machine)} -> {' '.join(name(m) for m in made.replicas[machine][1:])}"
                for machine in group
            ]
    return drawn


def _ring(made: Placement, group: tuple[int, ...]) -> list[int] | None:
    """Return the machines in the order in which they send, if each sends to the next ones."""
    copies = made.replica_count
    cycle = [group[0]]
    while copies > 1 and len(cycle) < len(group):
        cycle.append(made.replicas[cycle[-1]][1])
    twice = (*cycle, *cycle)
    closed = set(cycle) == set(group) and all(
        made.replicas[machine] == twice[index : index + copies]
        for index, machine in enumerate(cycle)
    )
    return cycle if closed else None


def _letters(index: int) -> str:
    """Return a, b, ..., z, aa, ab, ... for 0, 1, ..."""
    text = ""
    index += 1
    while index:
        index, digit = divmod(index - 1, 26)
        text = chr(ord("a") + digit) + text
    return text
