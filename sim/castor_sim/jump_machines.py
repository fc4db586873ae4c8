"""The sweep engine's machines, compiled: replacement, repair and standbys.

The same rules as `castor_sim.machines`, over arrays.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# numba infers the types of what it compiles.

from __future__ import annotations

from castor_sim.compiled import compiled


@compiled
def push(s, a, time_ns, machine):
    """Queue an arrival; the queue is a binary heap by (time, order of request)."""
    child = s.queued
    s.queued += 1
    sequence = s.sequence
    s.sequence += 1
    while child > 0:
        parent = (child - 1) // 2
        if a.queue_ns[parent] <= time_ns:
            break
        a.queue_ns[child] = a.queue_ns[parent]
        a.queue_order[child] = a.queue_order[parent]
        a.queue_machine[child] = a.queue_machine[parent]
        child = parent
    a.queue_ns[child] = time_ns
    a.queue_order[child] = sequence
    a.queue_machine[child] = machine


@compiled
def before(a, left, right):
    """Return whether the left entry of the queue comes first."""
    if a.queue_ns[left] != a.queue_ns[right]:
        return a.queue_ns[left] < a.queue_ns[right]
    return a.queue_order[left] < a.queue_order[right]


@compiled
def pop(s, a):
    """Take the first arrival off the queue."""
    s.queued -= 1
    last = s.queued
    a.queue_ns[0] = a.queue_ns[last]
    a.queue_order[0] = a.queue_order[last]
    a.queue_machine[0] = a.queue_machine[last]
    parent = 0
    while True:
        child = 2 * parent + 1
        if child >= last:
            return
        if child + 1 < last and before(a, child + 1, child):
            child += 1
        if not before(a, child, parent):
            return
        for queue in (a.queue_ns, a.queue_order, a.queue_machine):
            queue[parent], queue[child] = queue[child], queue[parent]
        parent = child


@compiled
def arrive(s, a, o):
    """The earliest machine of the queue is there: a replacement, or one back from repair."""
    now_ns, machine = a.queue_ns[0], a.queue_machine[0]
    pop(s, a)
    if o.fleet == 0:
        s.outstanding -= 1
        return
    if a.down[machine] == 0 or a.back_ns[machine] != now_ns:
        return
    a.down[machine] = 0
    if s.waiting > 0:
        a.position_of[machine] = a.waiting[0]
        s.waiting -= 1
        for index in range(s.waiting):
            a.waiting[index] = a.waiting[index + 1]
    else:
        a.standbys[s.standbys] = machine
        s.standbys += 1


@compiled
def vacant(s, o):
    """Return whether a position waits for a machine."""
    return s.waiting > 0 if o.fleet > 0 else s.outstanding > o.standbys


@compiled
def has_standby(s, o):
    """Return whether a machine could take a lost one's position now."""
    return s.standbys > 0 if o.fleet > 0 else s.outstanding < o.standbys


@compiled
def lose_cloud(s, a, o, restore_ns, detected_ns):
    """Use a standby if one is ready, and request a machine."""
    arrival_ns = detected_ns + restore_ns
    if has_standby(s, o):
        s.ready_ns = max(s.ready_ns, detected_ns + o.activation_ns)
    else:
        s.standby_empty += 1
        if o.dedicated:
            s.ready_ns = max(s.ready_ns, arrival_ns)
            return
    s.outstanding += 1
    push(s, a, arrival_ns, 0)


@compiled
def lose_fleet(s, a, o, machine, now_ns, restore_ns, detected_ns):
    """Send a machine to repair; return the position that it held, -1 if none."""
    back_ns = now_ns + restore_ns
    position = a.position_of[machine]
    if a.down[machine]:
        if back_ns <= a.back_ns[machine]:
            return -1
    else:
        a.down[machine] = 1
        if position < 0:
            index = 0
            while a.standbys[index] != machine:
                index += 1
            s.standbys -= 1
            for later in range(index, s.standbys):
                a.standbys[later] = a.standbys[later + 1]
        else:
            a.position_of[machine] = -1
            if s.standbys > 0:
                a.position_of[a.standbys[0]] = position
                s.standbys -= 1
                for index in range(s.standbys):
                    a.standbys[index] = a.standbys[index + 1]
                s.ready_ns = max(s.ready_ns, detected_ns + o.activation_ns)
            else:
                s.standby_empty += 1
                a.waiting[s.waiting] = position
                s.waiting += 1
    a.back_ns[machine] = back_ns
    push(s, a, back_ns, machine)
    return position
