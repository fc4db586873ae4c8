"""What the machines' memory holds in the sweep engine, compiled.

The same rules as `castor_sim.memory`, over arrays.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# numba infers the types of what it compiles.

from __future__ import annotations

from castor_policy.recovery import NOTHING, OWN_ONLY, SCRATCH, STORAGE, WHOLE
from castor_sim.compiled import compiled
from castor_sim.strategy_costs import NEVER_NS


@compiled
def become_whole(s, a):
    """A checkpoint is whole on every machine."""
    for index in range(s.lost):
        a.memory_state[a.lost[index]] = WHOLE
    for index in range(s.partial):
        a.memory_state[a.partial[index]] = WHOLE
    s.lost = 0
    s.partial = 0
    s.all_memory = WHOLE
    s.whole_ns = NEVER_NS


@compiled
def retrieved(s, a, p, now_ns):
    """Every rank has its shard; replicas of others follow in the background."""
    if p.memory_every == 0:
        return
    s.memory_iteration = s.restored
    if s.tier == SCRATCH:
        become_whole(s, a)
        s.all_memory = NOTHING
    elif s.tier == STORAGE:
        become_whole(s, a)
        s.all_memory = OWN_ONLY
    for index in range(s.lost):
        position = a.lost[index]
        a.memory_state[position] = OWN_ONLY
        a.partial[s.partial] = position
        s.partial += 1
    s.lost = 0
    if s.partial > 0 or s.all_memory == OWN_ONLY:
        s.whole_ns = now_ns + p.replicate_ns


@compiled
def lose_memory(s, a, position):
    """The memory of a position is gone."""
    memory = a.memory_state[position]
    if memory == NOTHING:
        return
    if memory == OWN_ONLY:
        index = 0
        while a.partial[index] != position:
            index += 1
        s.partial -= 1
        for later in range(index, s.partial):
            a.partial[later] = a.partial[later + 1]
    a.memory_state[position] = NOTHING
    a.lost[s.lost] = position
    s.lost += 1
