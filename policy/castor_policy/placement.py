"""Which machines hold a copy of whose shard (Gemini, sec. 4, Algorithm 1).

Machine ``i`` trains with shard ``i`` of the model states and always keeps a copy of it. A placement
names the other machines that hold one. It is fixed when a job starts, and everything that later
asks "can this failure be recovered from CPU memory?" asks the placement.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from castor_policy.domain_placement import spread_over_domains
from castor_policy.host_sets import connected_groups, rotate_groups

KINDS = ("group", "mixed", "ring", "random", "domains")
"""The names that `place` takes. "group" and "mixed" both ask for Algorithm 1."""


@dataclass(frozen=True, slots=True)
class Placement:
    """For every machine, the machines that hold a copy of its shard.

    Attributes:
        kind: which rule it came from, one of `KINDS`.
        replicas: ``replicas[i]`` are the machines (0-based) that hold shard ``i``, ``i`` first.
        groups: sets of machines that hold copies of each other's shards, directly or through
            others; together they are all machines.

    Raises:
        ValueError: a row of ``replicas`` does not start with its own machine, repeats one, names
            one that does not exist, or is not as long as the others; or ``groups`` do not
            contain every machine once.
    """

    kind: str
    replicas: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...]
    _shards_on: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        machines = len(self.replicas)
        if machines == 0:
            raise ValueError("a placement needs at least one machine; give replicas[0] = (0,)")
        held: list[list[int]] = [[machine] for machine in range(machines)]
        for shard, holders in enumerate(self.replicas):
            if not holders or holders[0] != shard:
                raise ValueError(
                    f"replicas[{shard}] must start with machine {shard}, which keeps its own shard"
                )
            if len(holders) != len(self.replicas[0]):
                raise ValueError(
                    f"replicas[{shard}] has {len(holders)} machines and replicas[0] has "
                    f"{len(self.replicas[0])}; give every shard the same number of copies"
                )
            if len(set(holders)) != len(holders):
                raise ValueError(f"replicas[{shard}] names a machine twice; name different ones")
            if min(holders) < 0 or max(holders) >= machines:
                raise ValueError(
                    f"replicas[{shard}] names a machine outside 0..{machines - 1}; "
                    "machines are numbered from 0"
                )
            for holder in holders[1:]:
                held[holder].append(shard)
        if sorted(machine for group in self.groups for machine in group) != list(range(machines)):
            raise ValueError(f"groups must contain each of the {machines} machines exactly once")
        # A frozen value cannot be assigned to, and the simulator asks for this at each failure.
        object.__setattr__(self, "_shards_on", tuple(map(tuple, held)))

    @property
    def machines(self) -> int:
        """Number of machines, N."""
        return len(self.replicas)

    @property
    def replica_count(self) -> int:
        """Number of copies of each shard, m, the machine's own included."""
        return len(self.replicas[0])

    def survives(self, failed: Collection[int]) -> bool:
        """Say whether every shard still has a live holder when the machines ``failed`` are lost.

        Costs O(len(failed) * m): a shard can be lost only if its own machine is.

        Raises:
            ValueError: ``failed`` names a machine that does not exist.
        """
        down = failed if isinstance(failed, (set, frozenset)) else set(failed)
        for shard in down:
            if not 0 <= shard < len(self.replicas):
                raise ValueError(f"there is no machine {shard}; use 0..{len(self.replicas) - 1}")
        return not any(all(holder in down for holder in self.replicas[shard]) for shard in down)

    def shards_on(self, machine: int) -> tuple[int, ...]:
        """Return the shards that ``machine`` holds: its own first, then the others ascending.

        Raises:
            ValueError: there is no such machine.
        """
        if not 0 <= machine < len(self.replicas):
            raise ValueError(f"there is no machine {machine}; use 0..{len(self.replicas) - 1}")
        return self._shards_on[machine]

    def host_sets(self) -> tuple[tuple[int, ...], ...]:
        """Return the distinct sets of machines that hold one shard, each sorted, in order.

        Their number n decides what simultaneous failures cost: m machines that fail at once lose
        a shard with probability n / C(N, m) (Theorem 1's proof).
        """
        return tuple(sorted({tuple(sorted(holders)) for holders in self.replicas}))


def place(
    kind: str,
    machines: int,
    replicas: int,
    *,
    domains: Sequence[int] | None = None,
    rng: random.Random | None = None,
) -> Placement:
    """Place ``replicas`` copies of each of ``machines`` shards by the named rule.

    Args:
        kind: one of `KINDS`.
        machines: N >= 1.
        replicas: m, copies of each shard, the machine's own included; 1 <= m <= N.
        domains: the failure domain of each machine; needed by "domains" only.
        rng: needed by "random" only.

    Raises:
        ValueError: an unknown kind, sizes out of range, or a missing ``domains`` or ``rng``.
    """
    if kind in {"group", "mixed"}:
        return group_placement(machines, replicas)
    if kind == "ring":
        return ring_placement(machines, replicas)
    if kind == "random":
        if rng is None:
            raise ValueError("the random placement needs rng=random.Random(seed)")
        return random_placement(machines, replicas, rng)
    if kind == "domains":
        if domains is None:
            raise ValueError("the domains placement needs domains: one number for each machine")
        return domain_placement(machines, replicas, domains)
    raise ValueError(f"unknown placement {kind!r}; use one of {', '.join(KINDS)}")


def group_placement(machines: int, replicas: int) -> Placement:
    """Place by Algorithm 1: plain groups of m; if m does not divide N, the last one is a ring.

    In a group every machine holds the shards of all; in the ring, of m < r < 2m machines, each
    sends to the next m - 1. The kind of the result is "group" or "mixed" accordingly.

    Raises:
        ValueError: not 1 <= replicas <= machines.
    """
    _check_sizes(machines, replicas)
    starts = [replicas * group for group in range(machines // replicas)]
    groups = tuple(
        tuple(range(start, end)) for start, end in zip(starts, [*starts[1:], machines], strict=True)
    )
    kind = "group" if machines % replicas == 0 else "mixed"
    return Placement(kind, rotate_groups(machines, replicas, groups), groups)


def ring_placement(machines: int, replicas: int) -> Placement:
    """Let each machine send its shard to the next m - 1, around one ring of all.

    Raises:
        ValueError: not 1 <= replicas <= machines.
    """
    _check_sizes(machines, replicas)
    ring = tuple(range(machines))
    return Placement("ring", rotate_groups(machines, replicas, (ring,)), (ring,))


def random_placement(machines: int, replicas: int, rng: random.Random) -> Placement:
    """Place at random, yet with every machine sending m - 1 copies and receiving m - 1.

    Each of the m - 1 rounds draws a random permutation of the receivers and mends the few places
    where it would send a shard to a machine that has it. The machines that a round may still use
    form a regular bipartite graph, which has a perfect matching, so mending always ends well.

    Raises:
        ValueError: not 1 <= replicas <= machines.
    """
    _check_sizes(machines, replicas)
    holders: list[list[int]] = [[machine] for machine in range(machines)]
    for _ in range(replicas - 1):
        taken = [set(row) for row in holders]
        receiver_of = list(range(machines))
        rng.shuffle(receiver_of)
        sender_of: list[int | None] = [None] * machines
        clashing = []
        for sender, receiver in enumerate(receiver_of):
            if receiver in taken[sender]:
                clashing.append(sender)
            else:
                sender_of[receiver] = sender
        for sender in clashing:
            _augment(sender, taken, sender_of, rng.randrange(machines))
        for receiver, matched in enumerate(sender_of):
            assert matched is not None, "a regular bipartite graph has a perfect matching"
            holders[matched].append(receiver)
    rows = tuple(map(tuple, holders))
    return Placement("random", rows, connected_groups(rows))


def domain_placement(machines: int, replicas: int, domains: Sequence[int]) -> Placement:
    """Keep the copies of each shard in different failure domains, wherever that is possible.

    A domain is what fails as one: a rack, a switch, a power feed. See
    `castor_policy.domain_placement.spread_over_domains` for what is promised when domains are
    uneven or too few.

    Args:
        machines: N >= 1.
        replicas: m, 1 <= m <= N.
        domains: the domain of each machine, any integers.

    Raises:
        ValueError: not 1 <= replicas <= machines, or ``domains`` has another length than N.
    """
    _check_sizes(machines, replicas)
    if len(domains) != machines:
        raise ValueError(
            f"domains names {len(domains)} machines and there are {machines}; "
            "give one domain for each machine"
        )
    rows = spread_over_domains(replicas, domains)
    return Placement("domains", rows, connected_groups(rows))


def _augment(
    sender: int, taken: Sequence[set[int]], sender_of: list[int | None], start: int
) -> None:
    """Find a receiver for ``sender``, moving others if need be (breadth-first augmenting path)."""
    machines = len(sender_of)
    reached_by: dict[int, int] = {}
    queue = [sender]
    for current in queue:
        for offset in range(machines):
            receiver = (start + offset) % machines
            if receiver in taken[current] or receiver in reached_by:
                continue
            reached_by[receiver] = current
            owner = sender_of[receiver]
            if owner is not None:
                queue.append(owner)
                continue
            # Walk back: each sender on the path takes the receiver that it reached.
            giver, free = current, receiver
            while True:
                previous = next((r for r, o in enumerate(sender_of) if o == giver), None)
                sender_of[free] = giver
                if giver == sender:
                    return
                assert previous is not None, "only the path's first sender had no receiver"
                free, giver = previous, reached_by[previous]
    raise AssertionError("a regular bipartite graph has a perfect matching")


def _check_sizes(machines: int, replicas: int) -> None:
    if machines < 1:
        raise ValueError(f"machines is {machines}; use at least 1")
    if not 1 <= replicas <= machines:
        raise ValueError(
            f"replicas is {replicas}; use 1 to {machines}, the number of machines, "
            "since each copy lies on a different machine"
        )
