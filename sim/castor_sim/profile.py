"""What a checkpoint strategy costs and promises, in whole nanoseconds and iterations.

A strategy (`castor_sim.strategies`) turns cluster, model and its own options into a `Profile`;
every engine runs any profile. So a strategy needs no code in an engine, and the engines can be
held against each other over random profiles.
"""

from __future__ import annotations

from typing import NamedTuple

NEVER_NS = (1 << 62) - 1
"""A time that no run reaches (146 years)."""


class Profile(NamedTuple):
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
            checkpoint before a recovery from memory (PAPER.md Fig. 14: 162 s).
        retrieve_own_ns: to load a shard from the machine's own memory.
        retrieve_peer_ns: to fetch one shard from a peer; a holder serves its ranks in turn.
        retrieve_storage_ns: for all ranks to load the persistent checkpoint.
        replicate_ns: from the end of retrieval until every replica is back in place, in the
            background.
        warm_up_ns: from the end of retrieval to the start of the first iteration.
        memory_in_trainer: 1 if a software failure takes that machine's memory copy with it.
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


def check_profile(profile: Profile) -> None:
    """Raise ValueError where the figures contradict each other (PAPER.md Eq. 2)."""
    if profile.iteration_ns <= 0:
        raise ValueError(f"iteration_ns is {profile.iteration_ns}; an iteration takes time")
    for name, value in profile._asdict().items():
        if value < 0:
            raise ValueError(f"{name} is {value}; expected 0 or more")
    for tier, every, transfer_ns in (
        ("memory", profile.memory_every, profile.memory_transfer_ns),
        ("storage", profile.storage_every, profile.storage_transfer_ns),
    ):
        if every and transfer_ns > every * profile.iteration_ns:
            raise ValueError(
                f"a {tier} checkpoint takes {transfer_ns / 1e9:.1f} s to transfer, but the next "
                f"starts after {every} iterations of {profile.iteration_ns / 1e9:.1f} s "
                f"(Eq. 2: 1/f >= t_ckpt); checkpoint less often"
            )
