"""The engine for sweeps: the same model as the simpy engine, compiled, for the same failures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from castor_sim import jump_kernel
from castor_sim.strategy_costs import NEVER_NS, StrategyCosts
from castor_sim.strikes import Strikes
from castor_sim.tally import Operations, Tally


class Arrays(NamedTuple):
    """The kernel's working memory; its size follows the machines, not the horizon."""

    memory_state: NDArray[np.int64]
    lost: NDArray[np.int64]
    partial: NDArray[np.int64]
    load: NDArray[np.int64]
    sources: NDArray[np.int64]
    queue_ns: NDArray[np.int64]
    queue_order: NDArray[np.int64]
    queue_machine: NDArray[np.int64]
    position_of: NDArray[np.int64]
    standbys: NDArray[np.int64]
    waiting: NDArray[np.int64]
    down: NDArray[np.int8]
    back_ns: NDArray[np.int64]
    trainers_lost: NDArray[np.int8]
    ended: NDArray[np.int64]
    spare_ns: NDArray[np.int64]
    spareless: NDArray[np.int64]
    record: NDArray[np.int8]


def _arrays(operations: Operations, queue_room: int, record_room: int) -> Arrays:
    positions, fleet = operations.positions, max(operations.fleet, operations.positions)
    position_of = np.full(fleet, -1, np.int64)
    position_of[:positions] = np.arange(positions)
    standbys = np.zeros(fleet, np.int64)
    standbys[: fleet - positions] = np.arange(positions, fleet)

    def zeros(size: int) -> NDArray[np.int64]:
        return np.zeros(size, np.int64)

    return Arrays(
        memory_state=zeros(positions),
        lost=zeros(positions),
        partial=zeros(positions),
        load=zeros(positions),
        sources=zeros(positions),
        queue_ns=zeros(queue_room),
        queue_order=zeros(queue_room),
        queue_machine=zeros(queue_room),
        position_of=position_of,
        standbys=standbys,
        waiting=zeros(positions),
        down=np.zeros(fleet, np.int8),
        back_ns=np.zeros(fleet, np.int64),
        trainers_lost=np.zeros(positions, np.int8),
        ended=zeros(positions),
        spare_ns=zeros(positions),
        spareless=zeros(positions),
        record=np.zeros(record_room, np.int8),
    )


def _with_more_room(arrays: Arrays) -> Arrays:
    def doubled(array: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.concatenate([array, np.zeros_like(array)])

    return arrays._replace(
        queue_ns=doubled(arrays.queue_ns),
        queue_order=doubled(arrays.queue_order),
        queue_machine=doubled(arrays.queue_machine),
    )


def replica_array(replicas: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    """Return a placement as the kernel takes it: one row a position."""
    return np.asarray(replicas, dtype=np.int32)


def run(
    costs: StrategyCosts,
    operations: Operations,
    replicas: NDArray[np.int32],
    strikes: Iterable[Strikes],
    *,
    horizon_ns: int = NEVER_NS,
    target_iterations: int = 0,
    sources: list[int] | None = None,
) -> Tally:
    """Run one replication; the arguments are those of `castor_sim.simpy_engine.SimpyEngine`.

    `replicas` comes as `replica_array` makes it; `sources`, if given, receives the recovery
    source of each failure in order of time.
    """
    state = np.zeros(1, jump_kernel.STATE)
    blocks = strikes
    room = 0
    if sources is not None:
        # The record needs a row for every failure, so here, and only here, all are held at once.
        blocks = list(strikes)
        room = sum(len(block.time_ns) for block in blocks)
    arrays = _arrays(operations, 64, room)
    state[0]["standbys"] = max(0, operations.fleet - operations.positions)
    jump_kernel.begin(state, costs, target_iterations)
    for block in blocks:
        row, rows = 0, len(block.time_ns)
        while row < rows:
            row = jump_kernel.advance(
                state,
                arrays,
                costs,
                operations,
                replicas,
                block,
                row,
                horizon_ns,
                target_iterations,
            )
            if row < 0:
                row = jump_kernel.FULL - row
                arrays = _with_more_room(arrays)
        if state[0]["finished"] or (rows and block.time_ns[-1] > horizon_ns):
            break
    wall_ns, useful_ns = jump_kernel.finish(
        state, arrays, costs, operations, replicas, horizon_ns, target_iterations
    )
    if sources is not None:
        sources.extend(arrays.record[: int(state[0]["recorded"])].tolist())
    return _tally(state[0], wall_ns, useful_ns)


def _tally(state: np.void, wall_ns: int, useful_ns: int) -> Tally:
    figures = {name: int(state[name]) for name in jump_kernel.STATE.names or ()}
    stall_ns = figures["stall_ns"]
    tally = Tally(
        wall_ns=wall_ns,
        useful_ns=useful_ns,
        lost_progress_ns=figures["train_ns"] - stall_ns - useful_ns,
        checkpoint_stall_ns=stall_ns,
        detection_ns=figures["detection_ns"],
        serialisation_ns=figures["serialisation_ns"],
        replacement_wait_ns=figures["replacement_wait_ns"],
        retrieval_ns=figures["retrieval_ns"],
        warm_up_ns=figures["warm_up_ns"],
        iterations=figures["iterations"],
        recoveries=figures["recoveries"],
        recoveries_in_place=figures["recoveries_in_place"],
        software_failures=figures["software_failures"],
        hardware_failures=figures["hardware_failures"],
        spare_failures=figures["spare_failures"],
        standby_empty=figures["standby_empty"],
        recovered_own_memory=figures["own_memory"],
        recovered_peer=figures["peer"],
        recovered_storage=figures["storage"],
        recovered_scratch=figures["scratch"],
        recovered_pending=figures["pending"],
    )
    tally.check()
    return tally
