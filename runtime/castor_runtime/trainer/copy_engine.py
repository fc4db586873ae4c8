"""What copies between an accelerator's memory and the CPU's: the protocol, and its times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from castor_runtime.trainer.staging import Copy

Span = tuple[int, int]
"""When something began and ended, in nanoseconds of CLOCK_MONOTONIC."""


class CopyEngine(Protocol):
    """What copies differ in between a GPU and its stand-in."""

    def enter_thread(self) -> None:
        """See `castor_runtime.trainer.device.Device.enter_thread`."""
        ...

    def note_update(self) -> None:
        """See `castor_runtime.trainer.device.Device.note_update`."""
        ...

    def moment(self) -> AbstractContextManager[Any]:
        """See `castor_runtime.trainer.device.Device.moment`: what is asked for later follows it."""
        ...

    def pin(self, memory: torch.Tensor) -> None:
        """See `castor_runtime.trainer.device.Device.pin`."""
        ...

    def unpin(self) -> None:
        """See `castor_runtime.trainer.device.Device.unpin`."""
        ...

    def preparing(self) -> AbstractContextManager[Any]:
        """Return what live state may be rearranged in; `begin` comes after it."""
        ...

    def aside(self) -> AbstractContextManager[Any]:
        """Return what to look at live state in, as it was at the last `moment`."""
        ...

    def begin(self, copies: Sequence[Copy]) -> Callable[[], Span]:
        """Begin to copy from device to CPU memory, as one operation of the copy engine.

        Returns:
            What blocks until it is done, and says when it was.
        """
        ...


@dataclass(frozen=True, slots=True)
class Interval:
    """Something that took place during a checkpoint.

    Attributes:
        kind: "receive" (a round under way on the network), "copy" (its chunks go to CPU memory), or
            "own" (a part of the own replica does).
        number: of the round, or of the part of the own replica.
        began_ns: CLOCK_MONOTONIC.
        ended_ns: likewise.
        size_bytes: received or copied.
    """

    kind: str
    number: int
    began_ns: int
    ended_ns: int
    size_bytes: int
