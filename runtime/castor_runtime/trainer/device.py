"""How bytes get from live state to shared memory and to peers: the protocol, and the CPU's way.

All ways do the same steps for the replicator: `capture` begins to fill this machine's own replica,
`post` starts a round of sends and receives, and what it returns is waited for. On the CPU the own
replica is what is sent, so the live state is free once it is captured. Where training's memory is
not the CPU's (`castor_runtime.trainer.staged_device`) pieces are sent out of live state, which
spares the way over PCIe, and the state is free when all is sent and the own replica is whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist

from castor_policy.chunk_schedule import Link
from castor_runtime.state.sections import Section, copy_section

Arrived = Callable[[int, int], None]
"""Is told when a round's network time began and ended, in nanoseconds of CLOCK_MONOTONIC."""


@dataclass(frozen=True, slots=True)
class Send:
    """Bytes [start, end) of the own part, to the trainer of a rank."""

    rank: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Receive:
    """Bytes of a rank's part, into `target`: shared memory, uint8."""

    rank: int
    target: torch.Tensor


class Transfer(Protocol):
    """A round under way."""

    def wait_arrived(self) -> None:
        """Return when everything was sent and received; raise what went wrong."""
        ...

    def wait(self) -> None:
        """Return when everything received lies in shared memory; raise what went wrong."""
        ...


class Device(Protocol):
    """A way to capture and to exchange; see the module's head."""

    sends_live: bool
    """Live state is read until all rounds were waited for, not just until `capture` returns."""

    copy_link: Link | None
    """The hop to CPU memory that received chunks take; None: they are received there."""

    def enter_thread(self) -> None:
        """Say that the calling thread will use this device; comes before all else."""
        ...

    def note_update(self) -> None:
        """Say that the state is about to be changed by what the calling thread asks for."""
        ...

    def moment(self) -> AbstractContextManager[Any]:
        """Return what the thread that trains looks at its state in, to have it captured.

        What is captured is the state as all that was asked for before the end of the `with` leaves
        it: by this thread, and by those that have called `note_update`.
        """
        ...

    def pin(self, memory: torch.Tensor) -> None:
        """Prepare shared memory for copies.

        Raises:
            RuntimeError: the driver refuses it.
        """
        ...

    def capture(
        self,
        sections: Sequence[Section],
        live: Sequence[torch.Tensor | None],
        own: torch.Tensor,
    ) -> None:
        """Fill `own` from the tensors of the last `moment`, or begin to, from its first byte."""
        ...

    def aside(self) -> AbstractContextManager[Any]:
        """Return what to look at captured live state in: training does not wait for it."""
        ...

    def captured_bytes(self) -> int:
        """Return how many bytes of `own`, from the first on, are filled."""
        ...

    def stop_yielding_to_training(self) -> None:
        """Go on with `own` whether or not training communicates: no more chunks are to come."""
        ...

    def wait_captured(self) -> int:
        """Return when `own` is whole: since when, in nanoseconds of CLOCK_MONOTONIC.

        Raises:
            RuntimeError: a copy failed.
        """
        ...

    def post(
        self, number: int, sends: Sequence[Send], receives: Sequence[Receive], arrived: Arrived
    ) -> Transfer:
        """Start round `number` of the part that is captured.

        Args:
            number: of the round; the same at sender and receiver.
            sends: of the own part.
            receives: of other ranks' parts.
            arrived: called once, in any thread, when everything was sent and received.
        """
        ...


class CpuDevice:
    """memcpy and gloo, straight between the two machines' shared memory.

    Args:
        group: gloo's, for nothing but checkpoints.
    """

    sends_live = False
    copy_link: Link | None = None

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._own = torch.empty(0, dtype=torch.uint8)
        self._captured_ns = time.monotonic_ns()

    def enter_thread(self) -> None:
        """Nothing to do."""

    def note_update(self) -> None:
        """Nothing to do: the CPU does one thing after the other."""

    def moment(self) -> AbstractContextManager[Any]:
        """Nothing to do, likewise."""
        return nullcontext()

    def pin(self, memory: torch.Tensor) -> None:
        """Nothing to do."""

    def capture(
        self,
        sections: Sequence[Section],
        live: Sequence[torch.Tensor | None],
        own: torch.Tensor,
    ) -> None:
        """Copy section by section; done on return."""
        for section, tensor in zip(sections, live, strict=True):
            copy_section(section, own, tensor)
        self._own = own
        self._captured_ns = time.monotonic_ns()

    def aside(self) -> AbstractContextManager[Any]:
        """Nothing to do."""
        return nullcontext()

    def captured_bytes(self) -> int:
        """All of it."""
        return self._own.numel()

    def stop_yielding_to_training(self) -> None:
        """Nothing to do."""

    def wait_captured(self) -> int:
        """Return when `capture` returned."""
        return self._captured_ns

    def post(
        self, number: int, sends: Sequence[Send], receives: Sequence[Receive], arrived: Arrived
    ) -> Transfer:
        """Start gloo's sends and receives, tagged by the round."""
        outgoing = [(send.rank, self._own[send.start : send.end]) for send in sends]
        incoming = [(receive.rank, receive.target) for receive in receives]
        return _Direct(post_gloo(self._group, number, outgoing, incoming), arrived)


def post_gloo(
    group: dist.ProcessGroup | None,
    tag: int,
    outgoing: Sequence[tuple[int, torch.Tensor]],
    incoming: Sequence[tuple[int, torch.Tensor]],
) -> list[Any]:
    """Start sends and receives with those ranks; return what to wait for."""
    works = [dist.irecv(target, rank, group, tag=tag) for rank, target in incoming]
    return works + [dist.isend(source, rank, group, tag=tag) for rank, source in outgoing]


class _Direct:
    def __init__(self, works: Sequence[Any], arrived: Arrived) -> None:
        self._began_ns = time.monotonic_ns()
        self._works = works
        self._arrived: Arrived | None = arrived

    def wait_arrived(self) -> None:
        if self._arrived is None:
            return
        for work in self._works:
            if work is not None:
                work.wait()
        self._arrived(self._began_ns, time.monotonic_ns())
        self._arrived = None

    def wait(self) -> None:
        self.wait_arrived()
