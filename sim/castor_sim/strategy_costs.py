"""What a checkpoint strategy costs and promises, in whole nanoseconds and iterations.

A strategy (`castor_sim.strategies`) turns cluster, model and its own options into `StrategyCosts`;
every engine runs any. So a strategy needs no code in an engine, and the engines can be held
against each other over random costs.
"""

from __future__ import annotations

from typing import NamedTuple

from castor_policy.frequency import shortest_period

NEVER_NS = (1 << 62) - 1
"""A time that no run reaches (146 years)."""


MAX_HORIZON_NS = 1 << 60
"""The longest run, 36 years: sums of two such times and a few shorter ones fit into int64."""

MAX_PHASE_NS = 10 * 365 * 86_400 * 10**9
"""The longest phase of a recovery or checkpoint, 10 years."""


class StrategyCosts(NamedTuple):
    """The figures that drive an engine; times in ns, periods in iterations, 0 for "not there".

    A named tuple of integers because numba compiles it as it stands.

    Attributes:
        iteration_ns: one iteration without any checkpoint cost (T_iter).
        memory_every: period of in-memory checkpoints; 0: no memory tier.
        memory_stall_ns: time that training stands still for each of them.
        memory_transfer_ns: from the end of that stall until all replicas are complete.
        storage_every: period of persistent checkpoints; 0: none.
        storage_stall_ns: time that training stands still for each of them.
        storage_transfer_ns: from the end of that stall until the checkpoint is complete.
        serialise_ns: time after detection in which live machines write out their memory
            checkpoint before a recovery from memory (Gemini, Fig. 14: 162 s).
        retrieve_own_ns: to load a shard from the machine's own memory.
        retrieve_peer_ns: to fetch one shard from a peer; a holder serves its ranks in turn.
        retrieve_storage_ns: for all ranks to load the persistent checkpoint.
        replicate_ns: from the end of retrieval until every replica is back in place, in the
            background.
        warm_up_ns: from the end of retrieval to the start of the first iteration, where all
            trainers are restarted.
        memory_in_trainer: 1 if a software failure takes that machine's memory copy with it.
        in_place: 1 if trainers that are not lost keep their processes (`castor_policy.in_place`).
        warm_up_in_place_ns: warm-up of such a recovery where a warm spare takes each lost place.
        warm_up_alone_ns: the same where a process has to build its engine for one of them.
        warm_spares: 1 if there is a warm spare beside each machine's trainers.
        spare_build_ns: from the start of a spare until it can take a place.
    """

    iteration_ns: int
    memory_every: int = 0
    memory_stall_ns: int = 0
    memory_transfer_ns: int = 0
    storage_every: int = 0
    storage_stall_ns: int = 0
    storage_transfer_ns: int = 0
    serialise_ns: int = 0
    retrieve_own_ns: int = 0
    retrieve_peer_ns: int = 0
    retrieve_storage_ns: int = 0
    replicate_ns: int = 0
    warm_up_ns: int = 0
    memory_in_trainer: int = 0
    in_place: int = 0
    warm_up_in_place_ns: int = 0
    warm_up_alone_ns: int = 0
    warm_spares: int = 0
    spare_build_ns: int = 0


def check_costs(
    costs: object,
    *,
    positions: int = 1,
    horizon_ns: int = MAX_PHASE_NS,
    least_iteration_ns: int = 1,
) -> None:
    """Raise ValueError where the figures contradict each other or the engines' integers.

    Args:
        costs: what a strategy returned, whatever that is.
        positions: machines of the job; a holder may have to serve as many.
        horizon_ns: how long the run may be.
        least_iteration_ns: of the job without checkpoints: no strategy makes iterations shorter.
    """
    costs = _of_whole_numbers(costs)
    if costs.iteration_ns <= 0:
        raise ValueError(f"iteration_ns is {costs.iteration_ns}; an iteration takes time")
    if costs.iteration_ns < least_iteration_ns:
        raise ValueError(
            f"iteration_ns is {costs.iteration_ns}, and the job's iteration takes "
            f"{least_iteration_ns} ns without any checkpoint: give that or more"
        )
    for name, value in costs._asdict().items():
        if not 0 <= value <= MAX_PHASE_NS:
            raise ValueError(
                f"{name} is {value}; expected 0 to {MAX_PHASE_NS} ns (10 years): are the sizes and "
                "bandwidths that it follows from what they should be?"
            )
    if costs.retrieve_peer_ns * positions > MAX_PHASE_NS:
        raise ValueError("fetching every shard from one peer would take over 10 years")
    iterations = horizon_ns // costs.iteration_ns
    for every, stall_ns in (
        (costs.memory_every, costs.memory_stall_ns),
        (costs.storage_every, costs.storage_stall_ns),
    ):
        if every and iterations // every * stall_ns > 2 * MAX_HORIZON_NS:
            raise ValueError(
                f"a checkpoint stalls training for {stall_ns / 1e9:.1f} s every {every} iterations "
                f"of {costs.iteration_ns / 1e9:g} s: it would hardly train; checkpoint less often"
            )
    for tier, every, transfer_ns in (
        ("memory", costs.memory_every, costs.memory_transfer_ns),
        ("storage", costs.storage_every, costs.storage_transfer_ns),
    ):
        if every and every < shortest_period(transfer_ns, costs.iteration_ns):
            raise ValueError(
                f"a {tier} checkpoint takes {transfer_ns / 1e9:.1f} s to transfer, but the next "
                f"starts after {every} iterations of {costs.iteration_ns / 1e9:.1f} s "
                f"(Eq. 2: 1/f >= t_ckpt); checkpoint less often"
            )


def _of_whole_numbers(costs: object) -> StrategyCosts:
    if not isinstance(costs, StrategyCosts):
        raise ValueError(  # noqa: TRY004 - what a user's strategy returned is input, as a file is
            f"it returned {costs!r}; expected castor_sim.strategy_costs.StrategyCosts, of whole "
            "nanoseconds and iterations"
        )
    for name, value in costs._asdict().items():
        if type(value) is not int:
            raise ValueError(
                f"{name} is {value!r}, a {type(value).__name__}; expected an int: times are whole "
                "nanoseconds (use // or round())"
            )
    return costs
