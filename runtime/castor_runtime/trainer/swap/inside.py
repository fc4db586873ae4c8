"""What is inside a replaceable group: a real one, or nobody else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn, Protocol

from torch._C._distributed_c10d import Store

from castor_runtime.trainer.swap.errors import LostRankError


class Inside(Protocol):
    """A group's connections in one generation.

    Attributes:
        operations: has the methods of `torch.distributed.ProcessGroup`.
    """

    operations: Any

    def connect(self) -> None:
        """Meet the other ranks; collective, and called once.

        Raises:
            LostRankError: `close` was called meanwhile, or another rank did not come.
        """

    def close(self) -> None:
        """End every call and every wait, also those in progress; from any thread, at any time."""

    def drop(self) -> None:
        """Give up what was closed; on return nothing of it writes into a tensor any more."""


MakeInside = Callable[[Store, int, int, timedelta], Inside]
"""Makes one of a store, this rank in the group, the group's size, and how long it may wait."""


class Ended:
    """What a group has when its generation is over; see `Inside`."""

    def __init__(self) -> None:
        self.operations: Any = EndedOperations()

    def connect(self) -> None:
        """See `Inside`."""

    def close(self) -> None:
        """See `Inside`."""

    def drop(self) -> None:
        """See `Inside`."""


class EndedOperations:
    """Does nothing that a group can be asked for."""

    def __getattr__(self, name: str) -> NoReturn:
        raise LostRankError(f"{name}: the generation of this group has ended")
