"""The sweep engine's compiled half: from failure to failure, over plain arrays.

The model is `castor_sim.simpy_engine`'s, event for event. The decisions are not written again:
`choose`, `known_ns` and the functions of `castor_sim.path` are compiled from the very
objects that the simpy engine calls (`register_jitable` leaves them as they are).
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# numba infers the types of what it compiles.

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from castor_policy.in_place import goes_on_in_place
from castor_policy.membership import detection_ns, known_ns
from castor_policy.period import is_due, last_due
from castor_policy.recovery import (
    NO_ITERATION,
    NOTHING,
    OWN_MEMORY,
    PEER,
    SCRATCH,
    STORAGE,
    assign_sources,
    choose,
)
from castor_sim import path
from castor_sim.compiled import compiled
from castor_sim.jump_machines import arrive, has_standby, lose_cloud, lose_fleet, vacant
from castor_sim.jump_memory import become_whole, lose_memory, retrieved
from castor_sim.jump_trainers import begin_generation, lose_trainers, start_spares, train
from castor_sim.strategy_costs import NEVER_NS
from castor_sim.tally import PENDING

COMPILED_FROM = (
    assign_sources,
    choose,
    goes_on_in_place,
    detection_ns,
    known_ns,
    is_due,
    last_due,
    path.stalls_ns,
    path.end_of_iteration_ns,
    path.iterations_at,
    path.stalled_ns,
    path.memory_checkpoint_at,
    path.storage_checkpoint_at,
    path.spares_begun_at,
    path.retrieval_ns,
)
"""The shared functions in this kernel; each is the object that the simpy engine calls."""

for _function in COMPILED_FROM:
    register_jitable(_function)

iterations_at = path.iterations_at
stalled_ns = path.stalled_ns
memory_checkpoint_at = path.memory_checkpoint_at
storage_checkpoint_at = path.storage_checkpoint_at
spares_begun_at = path.spares_begun_at
retrieval_ns = path.retrieval_ns
end_of_iteration_ns = path.end_of_iteration_ns

TRAINING, DETECTION, SERIALISATION, REPLACEMENT_WAIT, RETRIEVAL, WARM_UP = range(6)

_FIELDS = [
    # Progress and activity.
    "activity", "since_ns", "activity_end_ns", "start", "segment_ns", "progress_ns", "restored",
    "iterations", "finished", "now_ns", "struck_ns",
    # Checkpoints and memory.
    "memory_iteration", "storage_iteration", "all_memory", "lost", "partial", "whole_ns",
    "tier", "heaviest",
    # Trainers and their spares.
    "ended", "restarted", "in_place", "next_warm_up_ns", "spares_ns", "spareless",
    # Machines.
    "outstanding", "ready_ns", "standbys", "waiting", "queued", "sequence",
    # Failures of the recovery that is under way, and the next row of the record of sources.
    "episode_software", "episode_hardware", "recorded",
    # The tally.
    "train_ns", "stall_ns", "detection_ns", "serialisation_ns", "replacement_wait_ns",
    "retrieval_ns", "warm_up_ns", "recoveries", "recoveries_in_place",
    "software_failures", "hardware_failures",
    "spare_failures", "standby_empty", "own_memory", "peer", "storage", "scratch", "pending",
]  # fmt: skip

STATE = np.dtype([(name, np.int64) for name in _FIELDS])

FULL = -2
"""Returned by `advance`: the queue of machines under repair needs more room."""


@compiled
def _settle_training(s, a, p, now_ns):
    elapsed_ns = now_ns - s.segment_ns
    done = iterations_at(p, s.start, elapsed_ns)
    stalled = stalled_ns(p, s.start, done, elapsed_ns)
    memory = memory_checkpoint_at(p, s.start, done, elapsed_ns)
    storage = storage_checkpoint_at(p, s.start, done, elapsed_ns)
    if memory >= 0:
        s.memory_iteration = memory
        become_whole(s, a)
    if storage >= 0:
        s.storage_iteration = storage
    spares_ns = spares_begun_at(p, s.start, done)
    if spares_ns >= 0:
        start_spares(s, a, p, s.segment_ns + spares_ns)
    s.iterations = done
    s.stall_ns += stalled
    s.progress_ns = s.start * p.iteration_ns + elapsed_ns - stalled


@compiled
def _book(s, now_ns):
    spent_ns = now_ns - s.since_ns
    if s.activity == TRAINING:
        s.train_ns += spent_ns
    elif s.activity == DETECTION:
        s.detection_ns += spent_ns
    elif s.activity == SERIALISATION:
        s.serialisation_ns += spent_ns
    elif s.activity == REPLACEMENT_WAIT:
        s.replacement_wait_ns += spent_ns
    elif s.activity == RETRIEVAL:
        s.retrieval_ns += spent_ns
    else:
        s.warm_up_ns += spent_ns
    s.since_ns = now_ns


@compiled
def _plan(s, a, replicas):
    s.restored, s.tier, s.heaviest = choose(
        s.memory_iteration,
        s.all_memory,
        s.storage_iteration,
        a.lost,
        s.lost,
        replicas,
        a.memory_state,
        a.load,
        a.sources,
    )


@compiled
def _attribute(s, a, p, tier):
    software, hardware = s.episode_software, s.episode_hardware
    software_source = tier
    hardware_source = tier
    if tier in (OWN_MEMORY, PEER):
        software_source = PEER if p.memory_in_trainer else OWN_MEMORY
        hardware_source = PEER
    for source, count in ((software_source, software), (hardware_source, hardware)):
        if source == OWN_MEMORY:
            s.own_memory += count
        elif source == PEER:
            s.peer += count
        elif source == STORAGE:
            s.storage += count
        elif source == SCRATCH:
            s.scratch += count
        else:
            s.pending += count
    if len(a.record) > 0:
        for index in range(s.recorded - software - hardware, s.recorded):
            a.record[index] = hardware_source if a.record[index] else software_source
    s.episode_software = 0
    s.episode_hardware = 0


@compiled
def _enter_training(s, p, now_ns, target):
    s.activity = TRAINING
    s.segment_ns = now_ns
    s.activity_end_ns = NEVER_NS
    if target > 0:
        s.activity_end_ns = now_ns + end_of_iteration_ns(p, s.start, target)


@compiled
def _next_activity(s, a, p, replicas, target):
    """Go from the activity that ends now to the next; a wait for machines has no end of its own."""
    now_ns = s.activity_end_ns
    _book(s, now_ns)
    if s.activity == TRAINING:
        s.finished = 1
        s.now_ns = now_ns
    elif s.activity == DETECTION:
        _plan(s, a, replicas)
        s.activity = SERIALISATION
        in_memory = s.tier in (OWN_MEMORY, PEER)
        s.activity_end_ns = now_ns + (p.serialise_ns if in_memory else 0)
    elif s.activity == SERIALISATION:
        s.activity = REPLACEMENT_WAIT
        s.activity_end_ns = NEVER_NS
    elif s.activity == RETRIEVAL:
        _attribute(s, a, p, s.tier)
        retrieved(s, a, p, now_ns)
        s.activity = WARM_UP
        s.activity_end_ns = now_ns + s.next_warm_up_ns
    else:
        s.recoveries += 1
        s.recoveries_in_place += s.in_place
        train(s, a)
        s.progress_ns = s.restored * p.iteration_ns
        s.start = s.restored
        _enter_training(s, p, now_ns, target)


@compiled
def _end_wait(s, a, p, o, now_ns):
    _book(s, now_ns)
    in_memory = s.tier in (OWN_MEMORY, PEER)
    s.next_warm_up_ns = begin_generation(s, a, p, o, in_memory, now_ns)
    s.activity = RETRIEVAL
    s.activity_end_ns = now_ns + retrieval_ns(p, s.tier, s.heaviest)


@compiled
def _run_until(s, a, p, o, replicas, until_ns, target):
    """Let everything end that ends by `until_ns`: machines arrive first, then activities end."""
    while s.finished == 0:
        activity_end_ns = s.activity_end_ns
        if s.activity == REPLACEMENT_WAIT and not vacant(s, o):
            activity_end_ns = max(s.ready_ns, s.since_ns, s.now_ns)
        arrival_ns = a.queue_ns[0] if s.queued > 0 else NEVER_NS
        if arrival_ns <= activity_end_ns:
            if arrival_ns > until_ns:
                return
            s.now_ns = arrival_ns
            arrive(s, a, o)
        else:
            if activity_end_ns > until_ns:
                return
            s.now_ns = activity_end_ns
            if s.activity == REPLACEMENT_WAIT:
                _end_wait(s, a, p, o, activity_end_ns)
            else:
                _next_activity(s, a, p, replicas, target)


@compiled
def _leave(s, a, p, now_ns):
    if s.activity == TRAINING:
        _settle_training(s, a, p, now_ns)
    if s.whole_ns <= now_ns:
        become_whole(s, a)
    s.whole_ns = NEVER_NS
    _book(s, now_ns)


@compiled
def _strike(s, a, p, o, now_ns, machine, hardware, restore_ns, detected_ns):
    """Let one failure strike; those of one instant strike in turn, with no time between them."""
    position = machine
    if hardware:
        if o.fleet > 0:
            position = lose_fleet(s, a, o, machine, now_ns, restore_ns, detected_ns)
        else:
            lose_cloud(s, a, o, restore_ns, detected_ns)
    elif o.fleet > 0:
        position = a.position_of[machine]
    if position < 0:
        s.spare_failures += 1
        return
    if s.activity != DETECTION or s.since_ns != now_ns:
        _leave(s, a, p, now_ns)
        if s.activity != DETECTION:
            s.activity = DETECTION
            s.activity_end_ns = detected_ns
    s.activity_end_ns = max(s.activity_end_ns, detected_ns)
    if hardware:
        s.hardware_failures += 1
        s.episode_hardware += 1
    else:
        s.software_failures += 1
        s.episode_software += 1
    if len(a.record) > 0:
        a.record[s.recorded] = 1 if hardware else 0
        s.recorded += 1
    if hardware or p.memory_in_trainer:
        lose_memory(s, a, position)
    lose_trainers(s, a, position, hardware)


@compiled
def advance(s_array, a, p, o, replicas, strikes, first, horizon_ns, target):
    """Run through the failures from row `first`; return the row to go on from, or FULL rows.

    Returns the number of rows when the block is used up or the run has ended. Returns `FULL - row`
    when the queue has no room for the failures of `row`: call again with larger arrays from `row`.
    """
    s = s_array[0]
    times, machines, hardware, restore = strikes
    row = first
    count = len(times)
    while row < count:
        now_ns = times[row]
        if now_ns > horizon_ns:
            return count
        if now_ns != s.struck_ns:
            _run_until(s, a, p, o, replicas, now_ns, target)
            if s.finished:
                return count
        if s.queued + 1 >= len(a.queue_ns):
            return FULL - row
        detected_ns = known_ns(
            now_ns,
            hardware[row],
            o.heartbeat_ns,
            o.poll_ns,
            o.misses,
            o.exit_ns,
            o.unreached_ns,
            has_standby(s, o),
        )
        _strike(s, a, p, o, now_ns, machines[row], hardware[row] != 0, restore[row], detected_ns)
        s.struck_ns = now_ns
        s.now_ns = now_ns
        row += 1
    return count


@compiled
def finish(s_array, a, p, o, replicas, horizon_ns, target):
    """Run to the horizon or the target and close the books; return (wall, useful) in ns."""
    s = s_array[0]
    _run_until(s, a, p, o, replicas, horizon_ns, target)
    end_ns = s.now_ns if s.finished else horizon_ns
    if s.finished == 0:
        _book(s, end_ns)
    if s.activity == TRAINING:
        _settle_training(s, a, p, end_ns)
        return end_ns, s.progress_ns
    if s.activity == DETECTION:
        _plan(s, a, replicas)
    s.iterations = s.restored
    _attribute(s, a, p, PENDING)
    return end_ns, s.restored * p.iteration_ns


@compiled
def begin(s_array, p, target):
    """Set the run to its start: nothing trained, nothing checkpointed."""
    s = s_array[0]
    s.all_memory = NOTHING
    s.storage_iteration = NO_ITERATION
    s.whole_ns = NEVER_NS
    s.tier = SCRATCH
    s.spares_ns = NEVER_NS
    s.struck_ns = -1
    _enter_training(s, p, 0, target)
