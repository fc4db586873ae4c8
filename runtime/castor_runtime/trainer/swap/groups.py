"""The process groups of this process, whose connections are replaced together.

`install` has `torch.distributed` make replaceable groups wherever a gloo group is asked for, by
whomever: the user's script, DeepSpeed and Castor call what they always called, and are told that
their groups are gloo's. A group of another kind is made as torch makes it, and from then on this
process cannot go on in place: `refusal` says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store
from torch.distributed import distributed_c10d

from castor_runtime.trainer.swap.errors import CannotSwapError
from castor_runtime.trainer.swap.gloo_inside import GlooInside
from castor_runtime.trainer.swap.inside import MakeInside
from castor_runtime.trainer.swap.replaceable_group import ReplaceableGroup

_OURS: Final = "castor"
"""The name by which torch.distributed knows replaceable groups while it makes one."""


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the ranks of a generation meet.

    Attributes:
        store: shared by all of them; it outlives each of them.
        generation: at least 1.
    """

    store: Store
    generation: int


class Groups:
    """The groups that this process made, in that order, which is the same on all ranks.

    Args:
        meet: called once when the first group is made: where groups are connected as they are made,
            by all ranks at the same point; None: they are without other ranks until `connect_all`.
        make_inside: makes the connections of a group.

    Attributes:
        refusal: why connections cannot be replaced; "": they can.
    """

    def __init__(
        self,
        meet: Callable[[], Connection] | None = None,
        make_inside: MakeInside = GlooInside,
    ) -> None:
        self.refusal = ""
        self._meet = meet
        self._connection: Connection | None = None
        self._make_inside = make_inside
        self._rank = -1
        self._made: list[ReplaceableGroup] = []
        self._memberships: list[tuple[int, ...]] = []
        """Of every group that was made here, this rank's or not."""

    def install(self) -> None:
        """Have torch.distributed make replaceable groups in this process, before it makes any.

        Raises:
            CannotSwapError: it is too late, or was done before.
        """
        if dist.is_initialized() or _OURS.upper() in dist.Backend._plugins:
            raise CannotSwapError("process groups exist already, which cannot be replaced")
        dist.Backend.register_backend(_OURS, self._make, extended_api=True, devices=["cpu"])
        _installed.append(self)
        make_one = distributed_c10d._new_process_group_helper

        def replaceable(
            size: int, rank: int, ranks: list[int], backend: str, *more: Any, **named: Any
        ) -> Any:
            kind = _kind(backend)
            if kind != "gloo":
                self._refuse(kind)
                return make_one(size, rank, ranks, backend, *more, **named)
            self._memberships.append(tuple(ranks or range(size)))
            group, store = make_one(size, rank, ranks, _OURS, *more, **named)
            if isinstance(group, ReplaceableGroup):
                world = distributed_c10d._world
                world.pg_map[group] = (kind, store)
                world.pg_backend_config[group] = str(dist.BackendConfig(dist.Backend(kind)))
            return group, store

        vars(distributed_c10d)["_new_process_group_helper"] = replaceable
        vars(distributed_c10d)["rendezvous"] = self._rendezvous

    def end_all(self, generation: int) -> None:
        """End that generation of all groups, and those before; see `ReplaceableGroup.end`."""
        for group in list(self._made):
            group.end(generation)

    def let_go_all(self) -> None:
        """Return when nothing of an ended generation writes into tensors; see `let_go`."""
        for group in self._made:
            group.let_go()

    def connect_all(self, store: Store, generation: int, rank: int) -> None:
        """Connect all groups, as every rank of that generation does; later ones are, too.

        Args:
            store: shared by them.
            generation: newer than all before.
            rank: of this process from now on; another one than before only for a spare.

        Raises:
            CannotSwapError: in that place this process would have other groups than it made.
            LostRankError: the generation ended meanwhile.
            ValueError: the generation is not newer.
        """
        for ranks in self._memberships:
            if (self._rank in ranks) != (rank in ranks):
                raise CannotSwapError(
                    f"a spare that was built as rank {self._rank} cannot become rank {rank}: of "
                    f"the group of ranks {', '.join(map(str, ranks))} only one of the two is"
                )
        self._rank = rank
        self._connection = Connection(store, generation)
        for group in self._made:
            group.connect(store, generation, rank)

    def _make(self, asked: Any, _options: Any) -> ReplaceableGroup:
        """Make the group that torch.distributed asks for."""
        ranks = asked.global_ranks_in_group or range(asked.group_size)
        if not self._made:
            self._rank = asked.group_rank  # the first one is of all ranks
        group = ReplaceableGroup(
            asked.group_id, tuple(ranks), self._rank, asked.timeout, self._make_inside
        )
        connection = self._connected()
        if connection is not None:
            group.connect(connection.store, connection.generation, self._rank)
        self._made.append(group)
        return group

    def _connected(self) -> Connection | None:
        """Return where groups are connected as they are made; None: they are not."""
        if self._meet is not None:
            self._connection, self._meet = self._meet(), None
        return self._connection

    def _refuse(self, kind: str) -> None:
        """Note that there is a group whose connections stay; a spare has none to begin with."""
        self.refusal = f"a group of {kind} was made: only gloo's connections can be replaced"
        if self._connected() is None:
            raise CannotSwapError(self.refusal)

    def _rendezvous(
        self, _url: str, rank: int = -1, world_size: int = -1, **_others: Any
    ) -> Iterator[tuple[Store, int, int]]:
        """Stand for torch's, which has rank 0's process hold the store of all the others."""
        rank = int(os.environ["RANK"]) if rank < 0 else rank
        size = int(os.environ["WORLD_SIZE"]) if world_size < 0 else world_size
        connection = self._connected()
        if connection is None:
            yield HashStore(), rank, size
        else:
            yield PrefixStore(f"first/{connection.generation}", connection.store), rank, size


_installed: list[Groups] = []


def installed() -> Groups | None:
    """Return the groups of this process, if it makes replaceable ones."""
    return _installed[0] if _installed else None


def _kind(backend: str) -> str:
    """Return the kinds of a group's connections, by their names."""
    if str(backend) == dist.Backend.UNDEFINED and not torch.cuda.is_available():
        return "gloo"
    kinds = set(dist.BackendConfig(dist.Backend(backend)).get_device_backend_map().values())
    return ", ".join(sorted(kinds))
