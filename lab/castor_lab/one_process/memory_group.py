"""Process groups whose ranks are threads of one process: what torch.distributed asks, in memory.

A rank that is gone is known to all at once, as by the kernel that closes a process's connections:
who waits for it gets the error that gloo gives, and what it had sent before still arrives.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d


class Meeting:
    """Where the ranks of one generation meet, in all of their groups.

    Args:
        world: how many ranks there are.
    """

    def __init__(self, world: int) -> None:
        self.world = world
        self._changed = threading.Condition()
        self._gone: set[int] = set()
        self._garbled: str | None = None
        self._sent: dict[tuple[object, ...], deque[torch.Tensor]] = defaultdict(deque)
        self._given: dict[tuple[object, ...], dict[int, torch.Tensor]] = defaultdict(dict)

    def leave(self, rank: int) -> None:
        """Let a rank be gone: by its own end, or because it was killed."""
        with self._changed:
            self._gone.add(rank)
            self._changed.notify_all()

    def garble(self, group: str) -> None:
        """Flip a bit of what is sent next in a group."""
        with self._changed:
            self._garbled = group

    def send(self, rank: int, key: tuple[object, ...], what: torch.Tensor) -> None:
        """Leave a tensor for whoever receives under this key."""
        with self._changed:
            self._require(rank)
            sent = what.clone()
            if self._garbled == key[0]:
                sent.view(torch.uint8)[0] ^= 1
                self._garbled = None
            self._sent[key].append(sent)
            self._changed.notify_all()

    def receive(self, rank: int, source: int, key: tuple[object, ...], into: torch.Tensor) -> None:
        """Wait for what `source` sends under this key."""
        with self._changed:
            self._wait(rank, lambda: bool(self._sent[key]), [source])
            into.copy_(self._sent[key].popleft())

    def give(self, rank: int, key: tuple[object, ...], what: torch.Tensor) -> None:
        """Give this rank's share of a collective."""
        with self._changed:
            self._require(rank)
            self._given[key][rank] = what.clone()
            self._changed.notify_all()

    def gather(self, rank: int, key: tuple[object, ...]) -> list[torch.Tensor]:
        """Wait for the shares of all ranks; return them in the ranks' order."""
        with self._changed:
            given = self._given[key]
            self._wait(rank, lambda: len(given) == self.world, range(self.world), given)
            return [share for _, share in sorted(given.items())]

    def _wait(
        self,
        rank: int,
        done: Callable[[], bool],
        others: Sequence[int],
        given: dict[int, torch.Tensor] | None = None,
    ) -> None:
        def lost() -> list[int]:
            return [one for one in others if one in self._gone and one not in (given or ())]

        self._changed.wait_for(lambda: rank in self._gone or done() or bool(lost()))
        self._require(rank)
        if not done():
            raise RuntimeError(f"Connection closed by peer [rank {lost()[0]}]")

    def _require(self, rank: int) -> None:
        if rank in self._gone:
            raise RuntimeError(f"rank {rank} is gone itself")


class _Work(dist.Work):
    def __init__(self, finish: Callable[[], None]) -> None:
        super().__init__()
        self._finish = finish

    def wait(self, timeout: Any = None) -> bool:
        del timeout
        self._finish()
        return True


class MemoryGroup(dist.ProcessGroup):
    """One rank's end of one group.

    Args:
        meeting: of its generation.
        rank: of this end.
        group: its name; all ranks make their groups in the same order.
    """

    def __init__(self, meeting: Meeting, rank: int, group: str) -> None:
        super().__init__(rank, meeting.world)  # type: ignore[call-arg]  # without a store
        self._meeting = meeting
        self._own = rank
        self.group = group
        self._collectives = 0
        # torch's own functions translate ranks by this table before they call a group.
        distributed_c10d._world.pg_group_ranks[self] = {one: one for one in range(meeting.world)}

    def close(self) -> None:
        """Let torch forget the group."""
        distributed_c10d._world.pg_group_ranks.pop(self, None)

    def getBackendName(self) -> str:  # noqa: N802 - torch's name
        """Return what torch shows."""
        return "memory"

    def send(self, tensors: list[torch.Tensor], to: int, tag: int) -> dist.Work:
        """Send to a rank; done at once."""
        self._meeting.send(self._own, (self.group, self._own, to, tag), tensors[0])
        return _Work(lambda: None)

    def recv(self, tensors: list[torch.Tensor], source: int, tag: int) -> dist.Work:
        """Receive from a rank."""
        key = (self.group, source, self._own, tag)
        return _Work(lambda: self._meeting.receive(self._own, source, key, tensors[0]))

    def allreduce(  # type: ignore[override]  # the one of its forms that torch calls
        self, tensors: list[torch.Tensor], opts: Any
    ) -> dist.Work:
        """Combine all ranks' tensors, in the ranks' order."""
        reduce = _REDUCTIONS[str(opts.reduceOp.op)]
        return self._collective(tensors[0], lambda given: tensors[0].copy_(reduce(given)))

    def allgather(  # type: ignore[override]  # likewise
        self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], opts: Any = None
    ) -> dist.Work:
        """Give every rank all tensors."""
        del opts

        def take(given: Sequence[torch.Tensor]) -> None:
            for output, share in zip(outputs[0], given, strict=True):
                output.copy_(share)

        return self._collective(inputs[0], take)

    def broadcast(  # type: ignore[override]  # likewise
        self, tensors: list[torch.Tensor], opts: Any
    ) -> dist.Work:
        """Give every rank the tensor of one of them."""
        root = int(opts.rootRank)
        return self._collective(tensors[0], lambda given: tensors[0].copy_(given[root]))

    def barrier(self, opts: Any = None) -> dist.Work:
        """Wait for all ranks."""
        del opts
        return self._collective(torch.empty(0), lambda _: None)

    def _collective(
        self, share: torch.Tensor, take: Callable[[Sequence[torch.Tensor]], object]
    ) -> dist.Work:
        self._collectives += 1
        key = (self.group, self._collectives)
        self._meeting.give(self._own, key, share)

        def finish() -> None:
            take(self._meeting.gather(self._own, key))

        return _Work(finish)


def _reduction(
    two: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Callable[[Sequence[torch.Tensor]], torch.Tensor]:
    def all_of_them(given: Sequence[torch.Tensor]) -> torch.Tensor:
        total = given[0].clone()
        for share in given[1:]:
            total = two(total, share)
        return total

    return all_of_them


_REDUCTIONS = {
    str(dist.ReduceOp.SUM): _reduction(torch.add),
    str(dist.ReduceOp.MIN): _reduction(torch.minimum),
    str(dist.ReduceOp.MAX): _reduction(torch.maximum),
}
