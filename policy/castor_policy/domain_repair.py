"""Move single copies to further failure domains where plain groups cannot reach them.

A maximum-flow argument in the domains' terms. A unit of load that a domain takes in must leave it
again along another shard's copy, until it reaches a domain with room or the one where the first
copy came from. Domains have room while their machines receive on average within one of m - 1;
inside a domain the load is evened out at the end, which moves no copy to another domain.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence

_SLACK = -1
"""Stands in a path for the step from a domain that may receive more to one that may less."""

_Node = tuple[int, bool]
"""A domain that the load passes, and whether a shard that can spare a domain gave one up by then.

One such gift a path is enough, and more would cost more domains than the path wins.
"""


class SpreadRepair:
    """Raise the number of domains of each shard, keeping every machine's load within one of m - 1.

    Args:
        rows: holders of each shard, its own machine first; every machine receives m - 1 copies.
        domain_of: the domain of each machine, numbered from 0 without gaps.
    """

    def __init__(self, rows: Sequence[Sequence[int]], domain_of: Sequence[int]) -> None:
        self._rows = [list(row) for row in rows]
        self._domain_of = domain_of
        self._copies = len(rows[0])
        self._members: list[list[int]] = [[] for _ in range(max(domain_of) + 1)]
        for machine, domain in enumerate(domain_of):
            self._members[domain].append(machine)
        self._received = [0] * len(rows)
        domains = range(len(self._members))
        self._domain_load = [0 for _ in domains]
        # Bit sets of shards, so that "is there a shard that could move from u to v?" is one AND.
        self._touches = [0 for _ in domains]
        self._fills = [0 for _ in domains]
        self._may_leave = [0 for _ in domains]
        self._repeats = [0 for _ in domains]
        self._rich = 0
        for shard, row in enumerate(self._rows):
            for holder in row[1:]:
                self._received[holder] += 1
                self._domain_load[domain_of[holder]] += 1
            self._note(shard, {domain_of[holder] for holder in row})

    def run(self) -> tuple[tuple[int, ...], ...]:
        """Return the rows after every improvement that the loads allow."""
        wanted = min(self._copies, len(self._members))
        # Exchanges that leave all loads alone come first; then one copy more or less a machine;
        # then a domain from shards that have two more than the one that gains.
        for slack, gifts in ((False, False), (True, False), (True, True)):
            for reached in range(1, wanted):
                self._raise_layer(reached, slack=slack, gifts=gifts)
        for domain in range(len(self._members)):
            self._even_out(domain)
        return tuple(tuple(row) for row in self._rows)

    def _raise_layer(self, reached: int, *, slack: bool, gifts: bool) -> None:
        """Give one domain more to as many shards with ``reached`` domains as can have one."""
        closed: list[set[_Node]] = []
        spare = reached + 2 if gifts else self._copies + 1
        self._rich = sum(1 << s for s in range(len(self._rows)) if self._spread(s) >= spare)
        for shard in range(len(self._rows)):
            if self._spread(shard) != reached:
                continue
            path = self._find(shard, slack, closed)
            if path is None:
                continue
            for moved in self._apply(shard, path):
                if self._spread(moved) < spare:
                    self._rich &= ~(1 << moved)
            closed.clear()

    def _spread(self, shard: int) -> int:
        return len({self._domain_of[holder] for holder in self._rows[shard]})

    def _note(self, shard: int, domains: Iterable[int]) -> None:
        """Bring these domains' bit sets up to date with the row of ``shard``."""
        bit = 1 << shard
        counts: dict[int, int] = {}
        for holder in self._rows[shard]:
            domain = self._domain_of[holder]
            counts[domain] = counts.get(domain, 0) + 1
        own = self._domain_of[shard]
        for domain in domains:
            count = counts.get(domain, 0)
            movable = count - (domain == own)
            for sets, holds in (
                (self._touches, count > 0),
                (self._fills, count == len(self._members[domain])),
                (self._may_leave, movable > 0),
                (self._repeats, count > 1),
            ):
                sets[domain] = sets[domain] | bit if holds else sets[domain] & ~bit

    def _movers(self, source: int, target: int) -> int:
        """Return the shards that can move a copy from source to target and lose no domain."""
        once = self._may_leave[source] & ~self._repeats[source] & ~self._touches[target]
        again = self._repeats[source] & ~self._fills[target]
        return once | again

    def _givers(self, source: int, target: int) -> int:
        """Return the shards that can give up ``source`` for a second copy in ``target``."""
        return self._may_leave[source] & ~self._fills[target] & self._rich

    def _find(self, shard: int, slack: bool, closed: list[set[_Node]]) -> list[_Node] | None:
        """Return the shortest path by which ``shard`` can give up a repeat for a new domain.

        ``closed`` remembers what searches reached in vain: until something moves, a search that
        starts inside such a set cannot leave it.
        """
        bit = 1 << shard
        domains = range(len(self._members))
        ends = {(d, gift) for d in domains if self._repeats[d] & bit for gift in (False, True)}
        starts = [(domain, False) for domain in domains if not self._touches[domain] & bit]
        if any(reached.issuperset(starts) and ends.isdisjoint(reached) for reached in closed):
            return None
        came_from: dict[_Node, _Node | None] = dict.fromkeys(starts)
        # What is not reached yet shrinks quickly; scanning only that keeps a search cheap.
        gifts = (False, True) if self._rich else (False,)
        unseen = {(d, gift): None for gift in gifts for d in (*domains, _SLACK)}
        for start in starts:
            del unseen[start]
        queue: list[_Node] = list(starts)
        for current in queue:
            for target in self._next(current, slack, unseen):
                came_from[target] = current
                del unseen[target]
                if target in ends:
                    path = [target]
                    while (step := came_from[path[-1]]) is not None:
                        path.append(step)
                    return path[::-1]
                queue.append(target)
        closed.append(set(came_from))
        return None

    def _next(self, current: _Node, slack: bool, unseen: Collection[_Node]) -> list[_Node]:
        here, gift = current
        if here == _SLACK:
            return [
                (domain, after)
                for domain, after in unseen
                if domain != _SLACK
                and after == gift
                and self._domain_load[domain] > self._least(domain)
            ]
        reached = []
        room = slack and self._domain_load[here] < self._most(here)
        for node in unseen:
            domain, after = node
            if domain == _SLACK:
                reachable = room and after == gift
            elif after == gift:
                reachable = self._movers(here, domain) != 0
            else:
                reachable = after and self._givers(here, domain) != 0
            if reachable:
                reached.append(node)
        return reached

    def _least(self, domain: int) -> int:
        return len(self._members[domain]) * max(0, self._copies - 2)

    def _most(self, domain: int) -> int:
        return len(self._members[domain]) * self._copies

    def _apply(self, shard: int, path: Sequence[_Node]) -> list[int]:
        """Move one copy for each step of the path, and return the shards that moved one."""
        moved = [shard]
        self._move(shard, path[-1][0], path[0][0])
        for (source, before), (target, after) in itertools.pairwise(path):
            if _SLACK in (source, target):
                continue
            able = self._movers if before == after else self._givers
            movers = able(source, target) & ~(1 << shard)
            assert movers, "a shortest path uses every shard once"
            moved.append((movers & -movers).bit_length() - 1)
            self._move(moved[-1], source, target)
        return moved

    def _move(self, shard: int, source: int, target: int) -> None:
        row = self._rows[shard]
        leaving = max(
            (holder for holder in row[1:] if self._domain_of[holder] == source),
            key=lambda machine: (self._received[machine], machine),
        )
        coming = min(
            (machine for machine in self._members[target] if machine not in row),
            key=lambda machine: (self._received[machine], machine),
        )
        self._replace(shard, leaving, coming)
        self._domain_load[source] -= 1
        self._domain_load[target] += 1
        self._note(shard, (source, target))

    def _replace(self, shard: int, leaving: int, coming: int) -> None:
        row = self._rows[shard]
        row[row.index(leaving)] = coming
        self._received[leaving] -= 1
        self._received[coming] += 1

    def _even_out(self, domain: int) -> None:
        """Level what the machines of one domain receive; they count as alike."""
        members = self._members[domain]
        while True:
            most = max(members, key=lambda machine: (self._received[machine], -machine))
            least = min(members, key=lambda machine: (self._received[machine], machine))
            if self._received[most] - self._received[least] < 2:
                return
            # It receives at least two copies more, so one of them is of a shard that the other
            # neither owns nor holds.
            shard = next(
                shard
                for shard, row in enumerate(self._rows)
                if most in row[1:] and least not in row
            )
            self._replace(shard, most, least)
