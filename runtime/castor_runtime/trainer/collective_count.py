"""Counts the collectives that training has begun, whoever calls them, and the waits for them.

Every process group numbers its collectives as they are begun, so that a library's or the user's
own count like DeepSpeed's, and one that never ends has been counted. A rank that does not come to a
collective is seen by that: it has begun fewer than the ranks that wait for it.
"""

from __future__ import annotations

import contextlib

import torch.distributed as dist
from torch.distributed import distributed_c10d

from castor_runtime.arena import RankControl
from castor_runtime.trainer.swap.errors import LostRankError
from castor_runtime.trainer.swap.replaceable_group import ReplaceableGroup


class CollectiveCount:
    """Writes the counts of this process into its line of the control block.

    Args:
        counters: of this trainer.
    """

    def __init__(self, counters: RankControl) -> None:
        self._counters = counters
        self._apart: tuple[dist.ProcessGroup, ...] = ()

    def leave_out(self, *groups: dist.ProcessGroup) -> None:
        """Do not count these groups: their traffic is Castor's own."""
        self._apart += groups

    def update(self) -> None:
        """Count; called from the heartbeat's thread."""
        every, shared = count(self._apart)
        self._counters.collectives = every
        self._counters.shared_collectives = shared

    def waited_ns(self) -> int:
        """Return for how long this process has waited in them, where groups tell (gloo's do)."""
        groups = list(distributed_c10d._world.pg_map)
        told = (g.waited_ns for g in groups if isinstance(g, ReplaceableGroup) and self._has(g))
        return sum(told)

    def _has(self, group: dist.ProcessGroup) -> bool:
        return not any(group is one for one in self._apart)


def count(apart: tuple[dist.ProcessGroup, ...]) -> tuple[int, int]:
    """Return how many collectives this process has begun, and how many with all ranks."""
    every = shared = 0
    for group in list(distributed_c10d._world.pg_map):
        if any(group is one for one in apart):
            continue
        begun = _begun(group)
        every += begun
        shared += begun if group.size() == dist.get_world_size() else 0
    return every, shared


def _begun(group: dist.ProcessGroup) -> int:
    """Return how many collectives of a group were begun here; 0 where its backends do not say."""
    # A group may have a backend a device ("cpu:gloo,cuda:nccl"); several devices may share one.
    begun: dict[object, int] = {}
    for device in group._device_types:
        with contextlib.suppress(RuntimeError, LostRankError):
            backend = group._get_backend(device)
            number = backend._get_sequence_number_for_group  # type: ignore[attr-defined]  # no stub
            begun[backend] = int(number())
    return sum(begun.values())
