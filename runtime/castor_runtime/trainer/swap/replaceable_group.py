"""A process group that stays the same object while its connections are replaced.

DeepSpeed, the user's script and Castor keep it for as long as the process lives. Inside is one of
three: nobody else yet (`LoneRank`), the connections of one generation, or nothing any more: then
every call, and every wait in progress, raises `LostRankError` at once.

Fencing: a generation that was ended is never connected, and `end` says which one it ends, so that
a word that comes late ends no newer one. The handle of a collective belongs to the connections that
it was begun with: waited for when those are gone it raises, whatever became of the collective.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final, NoReturn

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import (
    HashStore,
    PrefixStore,
    ProcessGroup,
    ProcessGroupGloo,
    Store,
    Work,
)

from castor_runtime.trainer.swap.errors import CannotSwapError, LostRankError
from castor_runtime.trainer.swap.inside import Ended, Inside, MakeInside
from castor_runtime.trainer.swap.lone_rank import LoneRank

_COLLECTIVES: Final = (
    "allreduce",
    "allreduce_coalesced",
    "reduce",
    "broadcast",
    "allgather",
    "allgather_coalesced",
    "all_gather_single",
    "_allgather_base",
    "all_gather_single_coalesced",
    "allgather_into_tensor_coalesced",
    "gather",
    "scatter",
    "reduce_scatter",
    "reduce_scatter_single",
    "_reduce_scatter_base",
    "reduce_scatter_single_coalesced",
    "reduce_scatter_tensor_coalesced",
    "all_to_all_single",
    "alltoall_base",
    "alltoall",
    "send",
    "recv",
    "recv_anysource",
    "barrier",
    "_end_coalescing",
)
"""What returns a handle."""

_OTHERS: Final = (
    "monitored_barrier",
    "_set_sequence_number_for_group",
    "_get_sequence_number_for_group",
    "_start_coalescing",
    "_get_backend",
    "_wait_for_pending_works",
)

_REFUSED: Final = (
    "split_group",
    "merge_remote_group",
    "_register_backend",
    "_register_on_completion_hook",
    "_enable_collectives_timing",
)


_ENDED: Final = Ended()
_CPU: Final = torch.device("cpu")


@functools.cache
def _told_of_transport() -> ProcessGroupGloo:
    """Return what DistributedDataParallel's log asks of a group that says it is gloo's.

    It takes the group's backend for a `ProcessGroupGloo`, and sends nothing over it.
    """
    return ProcessGroupGloo(HashStore(), 0, 1, timedelta(minutes=1))


class ReplaceableGroup(ProcessGroup):
    """See the module.

    Args:
        name: of the group, the same on all its ranks.
        ranks: of the whole job that are in it, in their order in it.
        rank: of this process in the whole job.
        timeout: of a collective.
        make_inside: makes its connections.
    """

    def __init__(
        self,
        name: str,
        ranks: Sequence[int],
        rank: int,
        timeout: timedelta,
        make_inside: MakeInside,
    ) -> None:
        super().__init__(ranks.index(rank), len(ranks))  # type: ignore[call-arg]
        super()._register_backend(_CPU, ProcessGroup.BackendType.GLOO, _told_of_transport())
        self.ranks: Final = tuple(ranks)
        self._own_name = name
        self._own_description = ""
        self._rank = self.ranks.index(rank)
        self._timeout = timeout
        self._make_inside = make_inside
        self._lock = threading.Lock()
        self._inside: Inside = LoneRank(self._rank, len(self.ranks))
        self._apart: list[Inside] = []
        """Connections that are no longer, or not yet, the group's: ended, or being made."""
        self._generation = 0
        self._ended = 0
        """No generation up to this one is connected again."""
        self.waited_ns = 0
        """For how long collectives were waited for, in this process."""

    def connect(self, store: Store, generation: int, rank: int) -> None:
        """Connect with the other ranks' groups of that name; each calls it for that generation.

        Args:
            store: shared by all ranks of the job.
            generation: newer than all that this group was in.
            rank: of this process in the whole job from now on.

        Raises:
            LostRankError: the generation has ended, or ends meanwhile, or a rank does not come.
            ValueError: the generation is not newer, or the rank is not in the group.
        """
        with self._lock:
            if generation <= self._generation:
                raise ValueError(
                    f"group {self._own_name} was in generation {self._generation}: it cannot be "
                    f"connected in generation {generation}"
                )
            if generation <= self._ended:
                raise LostRankError(f"generation {generation} has ended")
            self._rank = self.ranks.index(rank)
            self._generation = generation
            within = PrefixStore(f"groups/{generation}/{self._own_name}", store)
            new = self._make_inside(within, self._rank, len(self.ranks), self._timeout)
            old, self._inside = [*self._apart, self._inside], _ENDED
            self._apart = [new]
        for one in old:
            one.close()
            one.drop()
        new.connect()
        with self._lock:
            if generation <= self._ended:
                raise LostRankError(f"generation {generation} has ended")
            self._inside, self._apart = new, []

    def end(self, generation: int) -> None:
        """End that generation and all before: what calls or waits raises `LostRankError`.

        From any thread. A newer generation goes on, and so does who is alone yet. Returns when
        connections are closed.
        """
        with self._lock:
            self._ended = max(self._ended, generation)
            if self._generation == 0 or self._generation > self._ended:
                return
            if self._inside is not _ENDED:
                self._apart.append(self._inside)
                self._inside = _ENDED
            apart = list(self._apart)
        for one in apart:
            one.close()

    def let_go(self) -> None:
        """Return when nothing of an ended generation writes into tensors any more."""
        with self._lock:
            apart, self._apart = self._apart, []
        for one in apart:
            one.drop()

    def rank(self) -> int:
        """Return the rank of this process in the group."""
        return self._rank

    def size(self) -> int:
        """Return how many ranks are in the group."""
        return len(self.ranks)

    getRank, getSize = rank, size  # noqa: N815 - C++ asks for these

    def name(self) -> str:
        """Return what kind the connections are of."""
        return "gloo"

    getBackendName = _get_backend_name = name  # noqa: N815

    @property
    def group_name(self) -> Any:
        """The name by which its ranks and torch's own operators know the group."""
        return self._own_name

    @property
    def group_desc(self) -> str:
        """What torch says that the group is for."""
        return self._own_description

    def _set_group_name(self, name: Any) -> None:
        self._own_name = name

    def _set_group_desc(self, desc: str) -> None:
        self._own_description = desc

    def getGroupName(self) -> Any:  # noqa: D102, N802 - C++ asks for this
        return self._own_name

    def getGroupDesc(self) -> str:  # noqa: D102, N802
        return self._own_description

    @property
    def _device_types(self) -> list[torch.device]:
        return [torch.device("cpu")]  # also of a group that has ended, which is counted on

    @property
    def timeout(self) -> timedelta:
        """How long a collective may take."""
        return self._timeout

    def _has_hooks(self) -> bool:
        return False

    def set_timeout(self, timeout: timedelta) -> None:
        """Set how long a collective may take, in this generation and later ones."""
        self._timeout = timeout
        self._inside.operations.set_timeout(timeout)

    def abort(self) -> None:
        """End the generation that the group is in."""
        self.end(self._generation)

    shutdown = abort

    def check(self, inside: Inside) -> None:
        """Raise `LostRankError` unless those are still the group's connections."""
        if self._inside is not inside:
            raise LostRankError(f"a collective of group {self._own_name} was ended")

    def fail(self, inside: Inside, error: RuntimeError) -> NoReturn:
        """Raise what an error of those connections means."""
        self.check(inside)
        # Gloo's own sentences carry the file they come from; others are about the call itself.
        if "/gloo/" in str(error) or isinstance(error, dist.DistNetworkError):
            raise LostRankError(f"group {self._own_name} lost a rank: {error}") from error
        raise error


class HeldWork(Work):
    """The handle of a collective, good for as long as the connections that it was begun with.

    Args:
        group: that it is of.
        inside: those connections.
        work: their handle.
    """

    def __init__(self, group: ReplaceableGroup, inside: Inside, work: Work) -> None:
        super().__init__()
        self._group = group
        self._inside = inside
        self._work = work

    def wait(self, *timeout: Any, **named: Any) -> bool:
        """Wait for the collective; raise `LostRankError` when it never ends."""
        group, inside = self._group, self._inside
        group.check(inside)
        began_ns = time.monotonic_ns()
        try:
            done = self._work.wait(*timeout, **named)
        except RuntimeError as error:
            group.fail(inside, error)
        group.waited_ns += time.monotonic_ns() - began_ns
        group.check(inside)
        return done


def _collective(name: str) -> Any:
    def call(self: ReplaceableGroup, *arguments: Any, **named: Any) -> Work:
        inside = self._inside
        try:
            work: Work = getattr(inside.operations, name)(*arguments, **named)
        except RuntimeError as error:
            self.fail(inside, error)
        return HeldWork(self, inside, work)

    return call


def _other(name: str) -> Any:
    def call(self: ReplaceableGroup, *arguments: Any, **named: Any) -> Any:
        inside = self._inside
        try:
            return getattr(inside.operations, name)(*arguments, **named)
        except RuntimeError as error:
            self.fail(inside, error)

    return call


def _refused(name: str) -> Any:
    def call(_self: ReplaceableGroup, *_arguments: Any, **_named: Any) -> NoReturn:
        raise CannotSwapError(
            f"{name} is not possible with groups whose connections may be replaced"
        )

    return call


def _of_work(name: str) -> Any:
    def call(self: HeldWork, *arguments: Any, **named: Any) -> Any:
        self._group.check(self._inside)
        try:
            return getattr(self._work, name)(*arguments, **named)
        except RuntimeError as error:
            self._group.fail(self._inside, error)

    return call


for _name in _COLLECTIVES:
    setattr(ReplaceableGroup, _name, _collective(_name))
for _name in _OTHERS:
    setattr(ReplaceableGroup, _name, _other(_name))
for _name in _REFUSED:
    setattr(ReplaceableGroup, _name, _refused(_name))
for _name in (
    "is_completed",
    "is_success",
    "exception",
    "source_rank",
    "_source_rank",
    "result",
    "synchronize",
    "block_current_stream",
    "get_future",
    "get_future_result",
    "_get_op_type",
    "_get_duration",
):
    setattr(HeldWork, _name, _of_work(_name))
