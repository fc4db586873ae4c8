"""Move single copies to further failure domains where plain groups cannot reach them.

A maximum-flow argument in the domains' terms. A unit of load that a domain takes in must leave it
again along another shard's copy, until it reaches a domain with room or the one where the first
copy came from. Domains have room while their machines receive on average within one of m - 1;
inside a domain the load is evened out at the end, which moves no copy to another domain.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_SLACK = -1
"""Stands in a path for the step from a domain that may receive more to one that may less."""


@dataclass(frozen=True, slots=True)
class _Path:
    """Domains that the load passes, from the first one to the one that the copy leaves."""

    domains: tuple[int, ...]


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
        for shard, row in enumerate(self._rows):
            for holder in row[1:]:
                self._received[holder] += 1
                self._domain_load[domain_of[holder]] += 1
            self._note(shard, domains)

    def run(self) -> tuple[tuple[int, ...], ...]:
        """Return the rows after every improvement that the loads allow."""
        wanted = min(self._copies, len(self._members))
        # Exchanges that leave all loads alone come first; then one copy more or less a machine.
        for slack in (False, True):
            for reached in range(1, wanted):
                closed: list[set[int]] = []
                for shard in range(len(self._rows)):
                    while self._spread(shard) == reached:
                        path = self._find(shard, slack, closed)
                        if path is None:
                            break
                        self._apply(shard, path)
                        closed.clear()
        for domain in range(len(self._members)):
            self._even_out(domain)
        return tuple(tuple(row) for row in self._rows)

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

    def _find(self, shard: int, slack: bool, closed: list[set[int]]) -> _Path | None:
        """Return the shortest path by which ``shard`` can give up a repeat for a new domain.

        ``closed`` remembers what searches reached in vain: until something moves, a search that
        starts inside such a set cannot leave it.
        """
        bit = 1 << shard
        domains = range(len(self._members))
        ends = {domain for domain in domains if self._repeats[domain] & bit}
        starts = [domain for domain in domains if not self._touches[domain] & bit]
        if any(set(starts) <= reached and not ends & reached for reached in closed):
            return None
        came_from: dict[int, int | None] = dict.fromkeys(starts)
        queue: list[int] = list(starts)
        for current in queue:
            for target in self._next(current, slack, came_from):
                came_from[target] = current
                if target in ends:
                    path: list[int] = []
                    step: int | None = target
                    while step is not None:
                        path.append(step)
                        step = came_from[step]
                    return _Path(tuple(reversed(path)))
                queue.append(target)
        closed.append(set(came_from))
        return None

    def _next(self, current: int, slack: bool, came_from: dict[int, int | None]) -> Iterator[int]:
        if current == _SLACK:
            for domain in range(len(self._members)):
                if domain not in came_from and self._domain_load[domain] > self._least(domain):
                    yield domain
            return
        if slack and _SLACK not in came_from and self._domain_load[current] < self._most(current):
            yield _SLACK
        for domain in range(len(self._members)):
            if domain not in came_from and self._movers(current, domain):
                yield domain

    def _least(self, domain: int) -> int:
        return len(self._members[domain]) * max(0, self._copies - 2)

    def _most(self, domain: int) -> int:
        return len(self._members[domain]) * self._copies

    def _apply(self, shard: int, path: _Path) -> None:
        """Move the copies along the path, from its end, so that each step finds what it needs."""
        steps = list(zip(path.domains, path.domains[1:], strict=False))
        self._move(shard, path.domains[-1], path.domains[0])
        for source, target in steps:
            if _SLACK in (source, target):
                continue
            movers = self._movers(source, target) & ~(1 << shard)
            assert movers, "a shortest path uses every shard once"
            self._move((movers & -movers).bit_length() - 1, source, target)

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
