"""The sweep engine's trainers and warm spares, compiled.

The same rules as `castor_sim.trainers`, over arrays.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# numba infers the types of what it compiles.

from __future__ import annotations

from numba.extending import register_jitable

from castor_policy.in_place import goes_on_in_place
from castor_sim.compiled import compiled
from castor_sim.strategy_costs import NEVER_NS

register_jitable(goes_on_in_place)


@compiled
def lose_trainers(s, a, position, hardware):
    """The trainers of a position are gone; with its machine their spare, too."""
    if a.trainers_lost[position] == 0:
        a.trainers_lost[position] = 1
        a.ended[s.ended] = position
        s.ended += 1
    if hardware:
        _lose_spare(s, a, position)


@compiled
def begin_generation(s, a, p, o, in_memory, now_ns):
    """Bring all trainers into a generation that loads from memory or not; return its warm-up."""
    parked = 0 if s.restarted else o.positions - s.ended
    if p.in_place == 0 or not goes_on_in_place(in_memory, parked):
        s.in_place = 0
        s.restarted = 1
        s.spares_ns = NEVER_NS
        return p.warm_up_ns
    s.in_place = 1
    warm_up_ns = p.warm_up_in_place_ns
    for index in range(s.ended):
        position = a.ended[index]
        if p.warm_spares == 0 or max(s.spares_ns, a.spare_ns[position]) > now_ns:
            warm_up_ns = p.warm_up_alone_ns
        else:
            _lose_spare(s, a, position)
    return warm_up_ns


@compiled
def train(s, a):
    """Training goes on: all trainers can go on in place from now on."""
    for index in range(s.ended):
        a.trainers_lost[a.ended[index]] = 0
    s.ended = 0
    s.restarted = 0


@compiled
def start_spares(s, a, p, now_ns):
    """Spares were started where there are none."""
    stand_ns = now_ns + p.spare_build_ns
    s.spares_ns = min(s.spares_ns, stand_ns)
    for index in range(s.spareless):
        a.spare_ns[a.spareless[index]] = stand_ns
    s.spareless = 0


@compiled
def _lose_spare(s, a, position):
    if a.spare_ns[position] != NEVER_NS:
        a.spare_ns[position] = NEVER_NS
        a.spareless[s.spareless] = position
        s.spareless += 1
