"""Between two failures a run is closed form: these functions are that form.

A segment of training starts at iteration `start` (restored, its checkpoints already there).
Iteration n ends after (n - start) iterations and the stalls of the checkpoints taken after
iterations start+1 .. n-1; a checkpoint of iteration n stalls training right after it, the
memory tier first. All arguments and results are integers; times are ns since the segment began.

The simpy engine calls these functions and the sweep engine compiles them; the exact engine,
which is the oracle for both, does not use them.
"""

from __future__ import annotations

from castor_policy.in_place import SPARES_AFTER
from castor_policy.period import is_due, last_due
from castor_policy.recovery import SCRATCH, STORAGE
from castor_sim.strategy_costs import StrategyCosts


def stalls_ns(costs: StrategyCosts, start: int, last: int) -> int:
    """Return the stall time of the checkpoints of iterations start+1 .. last."""
    total = 0
    if costs.memory_every > 0 and costs.memory_stall_ns > 0:
        count = last // costs.memory_every - start // costs.memory_every
        total += count * costs.memory_stall_ns
    if costs.storage_every > 0 and costs.storage_stall_ns > 0:
        count = last // costs.storage_every - start // costs.storage_every
        total += count * costs.storage_stall_ns
    return total


def end_of_iteration_ns(costs: StrategyCosts, start: int, iteration: int) -> int:
    """Return when `iteration` (> start) ends, before any stall of its own checkpoint."""
    return (iteration - start) * costs.iteration_ns + stalls_ns(costs, start, iteration - 1)


def iterations_at(costs: StrategyCosts, start: int, elapsed_ns: int) -> int:
    """Return the last iteration that has ended by `elapsed_ns`; `start` if none has."""
    low = start
    high = start + elapsed_ns // costs.iteration_ns
    if high == start or end_of_iteration_ns(costs, start, high) <= elapsed_ns:
        return high
    # Invariant: low has ended, high has not.
    while high - low > 1:
        middle = (low + high) // 2
        if end_of_iteration_ns(costs, start, middle) <= elapsed_ns:
            low = middle
        else:
            high = middle
    return low


def stalled_ns(costs: StrategyCosts, start: int, done: int, elapsed_ns: int) -> int:
    """Return how much of `elapsed_ns` was stall, `done` being the last iteration that ended."""
    if done == start:
        return 0
    before_ns = stalls_ns(costs, start, done - 1)
    own_ns = stalls_ns(costs, start, done) - before_ns
    since_ns = elapsed_ns - (done - start) * costs.iteration_ns - before_ns
    return before_ns + min(own_ns, since_ns)


def memory_checkpoint_at(costs: StrategyCosts, start: int, done: int, elapsed_ns: int) -> int:
    """Return the newest iteration after `start` whose memory checkpoint is complete, or -1."""
    if costs.memory_every == 0:
        return -1
    iteration = last_due(done, costs.memory_every)
    delay_ns = costs.memory_stall_ns + costs.memory_transfer_ns
    while iteration > start:
        if end_of_iteration_ns(costs, start, iteration) + delay_ns <= elapsed_ns:
            return iteration
        iteration -= costs.memory_every
    return -1


def storage_checkpoint_at(costs: StrategyCosts, start: int, done: int, elapsed_ns: int) -> int:
    """Return the newest iteration after `start` whose storage checkpoint is complete, or -1."""
    if costs.storage_every == 0:
        return -1
    iteration = last_due(done, costs.storage_every)
    delay_ns = costs.storage_stall_ns + costs.storage_transfer_ns
    while iteration > start:
        ready_ns = end_of_iteration_ns(costs, start, iteration) + delay_ns
        if costs.memory_every > 0 and is_due(iteration, costs.memory_every):
            ready_ns += costs.memory_stall_ns
        if ready_ns <= elapsed_ns:
            return iteration
        iteration -= costs.storage_every
    return -1


def spares_begun_at(costs: StrategyCosts, start: int, done: int) -> int:
    """Return when warm spares were started, `done` being the last iteration that ended, or -1."""
    if done - start < SPARES_AFTER:
        return -1
    return end_of_iteration_ns(costs, start, start + SPARES_AFTER)


def retrieval_ns(costs: StrategyCosts, tier: int, heaviest: int) -> int:
    """Return how long it takes until every rank has its shard.

    Args:
        costs: the strategy's figures.
        tier: the code of where from.
        heaviest: the largest number of ranks that one machine's memory serves.
    """
    if tier == STORAGE:
        return costs.retrieve_storage_ns
    if tier == SCRATCH:
        return 0
    return max(costs.retrieve_own_ns, heaviest * costs.retrieve_peer_ns)
