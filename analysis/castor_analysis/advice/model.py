"""The closed forms behind `castor advise`: memory, lost groups, the storage interval, standbys.

They choose; how well the choice does is simulated (`castor_analysis.advice.advise`).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from castor_policy.frequency_two_tier import (
    TwoTier,
    optimal_storage_interval_s,
    two_tier_effective_ratio,
)
from castor_policy.placement import Placement
from castor_policy.survival import exact_or_estimate

YEAR_S = 365 * 86_400.0

BUFFERS = 2
"""One complete and one in progress for every replica (docs/paper.md, sec. 3)."""

UNNOTICED = 1e-4
"""An effective training time ratio that differs by less is taken for the same: 53 min a year."""

LONGEST_STORAGE_S = 3 * 3600.0
"""The paper's storage interval, which is not exceeded: storage also answers what no model holds."""

SHORTEST_STORAGE_S = 60.0
"""A whole state in new files more often than this is more than file systems are made for."""

STORAGE_BUSY = 0.5
"""The share of the time in which storage may be written to: data are read from it too."""

STANDBY_SHORTAGE = 0.01
"""A pool counts as large enough when fewer of the lost machines find it empty."""

_SAMPLES = 4000


def memory_need_bytes(placement: Placement, shard_bytes: int) -> int:
    """Return the CPU memory that checkpoints take on the machine that holds most shards.

    Two buffers for every shard that it holds: for GPT-2 100B on 16 machines with m = 2,
    4 x 75.2 GB = 301 GB (docs/paper.md, sec. 3).
    """
    held = max(len(placement.shards_on(machine)) for machine in range(placement.machines))
    return BUFFERS * held * shard_bytes


def group_losses_per_s(
    placement: Placement,
    *,
    machine_rate_per_s: float,
    window_s: float,
    domains: Sequence[int] | None = None,
    domain_rate_per_s: float = 0.0,
) -> float:
    """Return how often failures take all copies of a shard, so that only storage has it left.

    Each machine is lost at its rate and each domain goes down whole at its own, independently
    (Poisson); what is lost stays without its copies for a window. A renewal argument: copies in
    different domains are components in series of failing, and the rate at which the last one
    goes down while the others are is summed over the sets of holders; a domain that holds all
    copies of a shard counts once, however many shards it holds so. The sum counts a failure that
    takes several shards several times otherwise, so that it is a little high where losses are
    frequent.

    Args:
        placement: where the copies are.
        machine_rate_per_s: hardware failures of one machine by itself.
        window_s: from a failure until all replicas are back in place.
        domains: the domain of each machine; None: machines fail by themselves only.
        domain_rate_per_s: how often one domain goes down.

    Raises:
        ValueError: a negative rate or window, or a wrong number of domains.
    """
    if machine_rate_per_s < 0 or domain_rate_per_s < 0 or window_s < 0:
        raise ValueError("rates and the window must be 0 or more")
    domain_of = range(placement.machines) if domains is None else domains
    if len(domain_of) != placement.machines:
        raise ValueError(
            f"domains names {len(domain_of)} machines and the placement has {placement.machines}"
        )
    domain_rate = 0.0 if domains is None else domain_rate_per_s
    down = _share_down(machine_rate_per_s, window_s)
    domain_down = _share_down(domain_rate, window_s)
    total = 0.0
    fatal: set[int] = set()
    for hosts in placement.host_sets():
        sizes = Counter(domain_of[host] for host in hosts)
        whole = len(sizes) == 1
        if whole:
            fatal.update(sizes)
        blocks = []
        for size in sizes.values():
            singly = size * machine_rate_per_s * (1 - down) * down ** (size - 1)
            together = 0.0 if whole else domain_rate * (1 - down**size)
            enters = (1 - domain_down) * (singly + together)
            blocks.append((enters, domain_down + (1 - domain_down) * down**size))
        for index, (enters, _) in enumerate(blocks):
            others = (share for place, (_, share) in enumerate(blocks) if place != index)
            total += enters * math.prod(others)
    return total + len(fatal) * domain_rate * (1 - domain_down)


def joint_losses_per_s(placement: Placement, groups: Sequence[int], span_s: float) -> float:
    """Return how often a trace's joint failures take all copies of a shard.

    Args:
        placement: where the copies are.
        groups: how many machines were lost at each instant at which several were; they are
            taken to be any machines.
        span_s: of the trace, above 0.
    """
    rng = random.Random(0)  # noqa: S311 - samples, no secrets
    expected = 0.0
    for size, times in sorted(Counter(groups).items()):
        lost = min(size, placement.machines)
        survives = exact_or_estimate(placement, lost, samples=_SAMPLES, rng=rng).probability
        expected += times * (1.0 - survives)
    return expected / span_s


def racks_survived(placement: Placement, domains: Sequence[int]) -> float:
    """Return the share of the domains that can go down whole without a loss of a shard."""
    members: dict[int, list[int]] = {}
    for machine, domain in enumerate(domains):
        members.setdefault(domain, []).append(machine)
    return sum(placement.survives(group) for group in members.values()) / len(members)


@dataclass(frozen=True, slots=True)
class StorageInterval:
    """How often to write to storage.

    Attributes:
        chosen_s: the longest interval, up to 3 hours, that is not noticeably worse than the best
            one that leaves storage time for other work.
        optimal_s: the best of all; infinity where training never falls back to storage.
        shortest_s: the shortest that leaves storage time for other work.
        lost: by how much the effective training time ratio at `chosen_s` is below that of the best
            interval of `shortest_s` or more.
    """

    chosen_s: float
    optimal_s: float
    shortest_s: float
    lost: float


def storage_interval(config: TwoTier) -> StorageInterval:
    """Choose the work between two storage checkpoints.

    `optimal_storage_interval_s` is exact, but where a checkpoint costs training nothing it is the
    shortest that storage can take, which keeps storage busy for ever to save seconds a year. So
    storage is written to for at most `STORAGE_BUSY` of the time, at most every
    `SHORTEST_STORAGE_S`; and of what is left, the longest interval within `UNNOTICED` of the best
    ratio is taken, in whole minutes where it is minutes long.
    """
    optimal_s = optimal_storage_interval_s(config)
    busy_s = config.storage_checkpoint_s / STORAGE_BUSY
    shortest_s = max(config.min_storage_interval_s, busy_s, SHORTEST_STORAGE_S)
    longest_s = max(LONGEST_STORAGE_S, shortest_s)
    best_s = min(max(optimal_s, shortest_s), longest_s)
    best = two_tier_effective_ratio(config, best_s)
    wanted = best - UNNOTICED

    def chosen(interval_s: float) -> StorageInterval:
        lost = best - two_tier_effective_ratio(config, interval_s)
        return StorageInterval(interval_s, optimal_s, shortest_s, lost)

    low_s, high_s = best_s, longest_s
    if two_tier_effective_ratio(config, high_s) >= wanted:
        return chosen(high_s)
    # The ratio falls from the optimum on, so that one point divides good from worse.
    while high_s - low_s > 1.0:
        middle_s = (low_s + high_s) / 2
        if two_tier_effective_ratio(config, middle_s) >= wanted:
            low_s = middle_s
        else:
            high_s = middle_s
    return chosen(max(best_s, low_s // 60 * 60.0))


@dataclass(frozen=True, slots=True)
class Standbys:
    """How many machines to keep ready, as far as closed forms tell.

    Attributes:
        by_cost: the number at which standing by and waiting cost least together, in machines.
        by_shortage: the smallest at which fewer than 1 % of the lost machines find none (Erlang's
            loss formula).
        load: machines away at a time, in the mean.
    """

    by_cost: int
    by_shortage: int
    load: float


def erlang_loss(load: float, standbys: int) -> float:
    """Return the share of lost machines that find no standby, of a pool that serves as it loses.

    Erlang's loss formula, by its recursion.

    Args:
        load: rate of lost machines times the time until one is replaced; >= 0.
        standbys: how many there are; >= 0.
    """
    share = 1.0
    for count in range(1, standbys + 1):
        share = load * share / (count + load * share)
    return share


def waiting_share(load: float, standbys: int) -> float:
    """Return the share of the time in which more machines are away than stand by.

    Each lost machine is away for a while and then replaced, so that the number away is Poisson
    with mean `load` (M/G/infinity); the whole job waits while it exceeds the standbys.

    Args:
        load: rate of lost machines times the time until one is replaced; >= 0.
        standbys: how many there are; >= 0.
    """
    return _more_than(load, standbys)[standbys]


def standbys_for(load: float, machines: int) -> Standbys:
    """Choose the number of standbys.

    Args:
        load: rate of lost machines times the time until one is replaced.
        machines: N, all of which wait while a place is empty.

    Raises:
        ValueError: a negative load.
    """
    if load < 0:
        raise ValueError(f"load is {load}; it cannot be negative")
    by_shortage = 0
    while load and erlang_loss(load, by_shortage) >= STANDBY_SHORTAGE:
        by_shortage += 1
    most = by_shortage + math.ceil(load + 12 * math.sqrt(load))
    waits = _more_than(load, most)
    by_cost = min(range(most + 1), key=lambda count: (machines * waits[count] + count, count))
    return Standbys(by_cost, by_shortage, load)


def _more_than(load: float, most: int) -> list[float]:
    """Return P(X > n) of a Poisson variable for n = 0 .. most.

    Summed from the tail: 1 - P(X <= n) would lose the small ones.
    """
    last = most + 60 + math.ceil(12 * math.sqrt(load))
    terms = [
        math.exp(n * math.log(load) - load - math.lgamma(n + 1)) if load else float(n == 0)
        for n in range(last + 1)
    ]
    tail = math.fsum(terms[most + 1 :])
    found = [0.0] * (most + 1)
    for count in range(most, -1, -1):
        found[count] = tail
        tail += terms[count]
    return found


def _share_down(rate_per_s: float, window_s: float) -> float:
    return rate_per_s * window_s / (1.0 + rate_per_s * window_s)
