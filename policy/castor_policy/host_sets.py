"""Sets of machines that hold the same shards: how groups and rings deal them out, who is linked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def rotate_groups(
    machines: int, replicas: int, groups: Iterable[Sequence[int]]
) -> tuple[tuple[int, ...], ...]:
    """Let each machine send to the next m - 1 of its group, cyclically.

    In a group of m that is every other member; rotated, so that the j-th copies of a group lie on
    different machines and a reader of the j-th copies finds the load spread.
    """
    rows: list[tuple[int, ...]] = [()] * machines
    for group in groups:
        twice = (*group, *group)
        for position, machine in enumerate(group):
            rows[machine] = twice[position : position + replicas]
    return tuple(rows)


def connected_groups(rows: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Return the machines that share shards, directly or through others: sorted, smallest first."""
    parent = list(range(len(rows)))

    def root(machine: int) -> int:
        while parent[machine] != machine:
            parent[machine] = parent[parent[machine]]
            machine = parent[machine]
        return machine

    for row in rows:
        # Rows of thousands are seen in one go; they have few different parents.
        roots = {root(above) for above in {parent[machine] for machine in row}}
        lowest = min(roots)
        for joined in roots:
            parent[joined] = lowest
    members: dict[int, list[int]] = {}
    for machine in range(len(rows)):
        members.setdefault(root(machine), []).append(machine)
    return tuple(tuple(group) for group in members.values())
