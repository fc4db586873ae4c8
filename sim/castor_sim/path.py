"""Between two failures a run is closed form: these functions are that form.

A segment of training starts at iteration `start` (restored, its checkpoints already there).
Iteration n ends after (n - start) iterations and the stalls of the checkpoints taken after
iterations start+1 .. n-1; a checkpoint of iteration n stalls training right after it, the
memory tier first. All arguments and results are integers; times are ns since the segment began.

The simpy engine calls these functions and the sweep engine compiles them; the exact engine,
which is the oracle for both, does not use them.
"""

from __future__ import annotations

from castor_policy.period import is_due, last_due
from castor_sim.profile import Profile


def stalls_ns(profile: Profile, start: int, last: int) -> int:
    """Return the stall time of the checkpoints of iterations start+1 .. last."""
    total = 0
    if profile.memory_every > 0 and profile.memory_stall_ns > 0:
        count = last // profile.memory_every - start // profile.memory_every
        total += count * profile.memory_stall_ns
    if profile.storage_every > 0 and profile.storage_stall_ns > 0:
        count = last // profile.storage_every - start // profile.storage_every
        total += count * profile.storage_stall_ns
    return total


def end_of_iteration_ns(profile: Profile, start: int, iteration: int) -> int:
    """Return when `iteration` (> start) ends, before any stall of its own checkpoint."""
    return (iteration - start) * profile.iteration_ns + stalls_ns(profile, start, iteration - 1)


def iterations_at(profile: Profile, start: int, elapsed_ns: int) -> int:
    """Return the last iteration that has ended by `elapsed_ns`; `start` if none has."""
    low = start
    high = start + elapsed_ns // profile.iteration_ns
    if high == start or end_of_iteration_ns(profile, start, high) <= elapsed_ns:
        return high
    # Invariant: low has ended, high has not.
    while high - low > 1:
        middle = (low + high) // 2
        if end_of_iteration_ns(profile, start, middle) <= elapsed_ns:
            low = middle
        else:
            high = middle
    return low


def stalled_ns(profile: Profile, start: int, done: int, elapsed_ns: int) -> int:
    """Return how much of `elapsed_ns` was stall, `done` being the last iteration that ended."""
    if done == start:
        return 0
    before_ns = stalls_ns(profile, start, done - 1)
    own_ns = stalls_ns(profile, start, done) - before_ns
    since_ns = elapsed_ns - (done - start) * profile.iteration_ns - before_ns
    return before_ns + min(own_ns, since_ns)


def memory_checkpoint_at(profile: Profile, start: int, done: int, elapsed_ns: int) -> int:
    """Return the newest iteration after `start` whose memory checkpoint is complete, or -1."""
    if profile.memory_every == 0:
        return -1
    iteration = last_due(done, profile.memory_every)
    delay_ns = profile.memory_stall_ns + profile.memory_transfer_ns
    while iteration > start:
        if end_of_iteration_ns(profile, start, iteration) + delay_ns <= elapsed_ns:
            return iteration
        iteration -= profile.memory_every
    return -1


def storage_checkpoint_at(profile: Profile, start: int, done: int, elapsed_ns: int) -> int:
    """Return the newest iteration after `start` whose storage checkpoint is complete, or -1."""
    if profile.storage_every == 0:
        return -1
    iteration = last_due(done, profile.storage_every)
    delay_ns = profile.storage_stall_ns + profile.storage_transfer_ns
    while iteration > start:
        ready_ns = end_of_iteration_ns(profile, start, iteration) + delay_ns
        if profile.memory_every > 0 and is_due(iteration, profile.memory_every):
            ready_ns += profile.memory_stall_ns
        if ready_ns <= elapsed_ns:
            return iteration
        iteration -= profile.storage_every
    return -1
