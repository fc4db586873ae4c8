"""Placement over failure domains: racks, switches, power feeds that fail as one.

The paper puts consecutive machines in a group (sec. 4), which are often neighbours in one rack.
Two results shape what is done here instead, with N machines, m copies, and the largest domain of n:

* Every shard's copies can lie in m different domains, with every machine sending and receiving
  exactly m - 1, if and only if n <= floor(N/m). Needed: the n machines of a domain send n(m-1)
  copies out of it, and may receive at most one from each of the N - n machines outside.
  Sufficient: sort the machines by domain, deal them out to floor(N/m) laps like cards, and close
  the laps, one after the other, to a ring: two machines of one domain are at least m steps apart.
* One large ring has N host sets, the groups of Algorithm 1 only N/m, and each host set is one more
  way to lose a shard. So as many machines as possible are put in plain groups, and the ring keeps
  the fewest that can still be closed.

Where a domain is larger than that, copies are moved one by one along augmenting paths, and a
machine may then receive one copy more or less than m - 1.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from castor_policy.domain_repair import SpreadRepair
from castor_policy.host_sets import rotate_groups


def spread_over_domains(replicas: int, domains: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return for each machine the holders of its shard, itself first, spread over domains.

    In order of importance: (1) the copies of a shard lie in as many different domains as possible,
    shards with the fewest domains first, while no machine receives more or less than m - 1 copies
    by more than one; (2) machines receive exactly m - 1; (3) there are few host sets.
    Deterministic; machines of one domain count as alike.

    Args:
        replicas: m, 1 <= m <= N.
        domains: the domain of each of the N machines.
    """
    machines = len(domains)
    members: dict[int, list[int]] = {}
    for machine, domain in enumerate(domains):
        members.setdefault(domain, []).append(machine)
    ordered = sorted(members.items(), key=lambda item: (-len(item[1]), item[0]))
    blocks = [block for _, block in ordered]
    if len(blocks) == 1:
        tail = _algorithm1_tail(machines, replicas)
        cut = machines - tail
        groups = [list(range(start, start + replicas)) for start in range(0, cut, replicas)]
        return rotate_groups(machines, replicas, [*groups, range(cut, machines)])
    laps = _ring_laps(replicas, [len(block) for block in blocks])
    tail = replicas * laps + machines % replicas if laps else 0
    in_ring = _choose_ring([len(block) for block in blocks], tail, laps)
    grouped = [m for block, cut in zip(blocks, in_ring, strict=True) for m in block[cut:]]
    stride = len(grouped) // replicas
    groups = [grouped[start::stride] for start in range(stride)]
    if tail:
        groups.append(_close_laps(blocks, in_ring, laps))
    rows = rotate_groups(machines, replicas, groups)
    wanted = min(replicas, len(blocks))
    index_of = {domain: index for index, (domain, _) in enumerate(ordered)}
    domain_of = [index_of[domain] for domain in domains]
    if all(len({domain_of[holder] for holder in row}) == wanted for row in rows):
        return rows
    return SpreadRepair(rows, domain_of).run()


def _algorithm1_tail(machines: int, replicas: int) -> int:
    return machines % replicas + replicas if machines % replicas else 0


def _ring_laps(replicas: int, sizes: Sequence[int]) -> int:
    """Return the fewest laps L of a ring of m*L + N mod m machines that the domains can fill.

    A ring of L laps takes at most L machines of a domain. Where one domain is too large for that
    the answer is one lap, as in Algorithm 1.
    """
    machines = sum(sizes)
    rest = machines % replicas
    if rest == 0:
        return 0
    for laps in range(1, machines // replicas + 1):
        if sum(min(size, laps) for size in sizes) >= replicas * laps + rest:
            return laps
    return 1


def _choose_ring(sizes: Sequence[int], tail: int, laps: int) -> list[int]:
    """Say how many machines of each domain go to the ring: always from what is largest by then."""
    chosen = [0] * len(sizes)
    heap = [(-size, index) for index, size in enumerate(sizes)]
    heapq.heapify(heap)
    full: list[tuple[int, int]] = []
    for _ in range(tail):
        while heap and chosen[heap[0][1]] >= laps:
            full.append(heapq.heappop(heap))
        if not heap:
            # Too few domains for a ring without repeats: start another round over all of them.
            heap, full, laps = [item for item in full if item[0] < 0], [], laps + 1
            heapq.heapify(heap)
        left, index = heapq.heappop(heap)
        chosen[index] += 1
        heapq.heappush(full if left == -1 else heap, (left + 1, index))
    return chosen


def _close_laps(blocks: Sequence[Sequence[int]], in_ring: Sequence[int], laps: int) -> list[int]:
    """Order the ring's machines so that those of one domain are as far apart as they can be."""
    most_first = sorted(range(len(blocks)), key=lambda index: (-in_ring[index], index))
    dealt = [machine for index in most_first for machine in blocks[index][: in_ring[index]]]
    return [machine for lap in range(laps) for machine in dealt[lap::laps]]
