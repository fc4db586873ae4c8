"""How bytes get from live state to shared memory and to peers: the protocol, and the CPU's way.

All ways do the same steps for the replicator: `capture` begins to fill this machine's own replica,
`post` starts a round of sends and receives, and what it returns is waited for.

- `CpuDevice` sends the own replica; the live state is free when `capture` returns.
- `castor_runtime.trainer.captured_device` sends the own replica while a copy engine fills it out of
  an accelerator's memory; the state is free once it is whole.
- `castor_runtime.trainer.staged_device` sends live state, out of the accelerator's memory; the
  state is free when all is sent and the own replica is whole.

Where memory is saved (`castor_runtime.trainer.own_last`) `hold_live` comes in place of
`capture`: all of them send live state then, and the own replica is filled by `read`, later.
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
from castor_runtime.trainer.live_pieces import LivePieces
from castor_runtime.trainer.staging import copy_all

Post = Callable[
    [int, Sequence[tuple[int, torch.Tensor]], Sequence[tuple[int, torch.Tensor]]], list[Any]
]
"""Starts a round's sends and receives, each a rank and flat bytes; returns what to wait for."""

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

    copy_link: Link | None
    """The hop to CPU memory that received chunks take; None: they are received there."""

    launches_in_order: bool
    """Rounds must be launched in one order with training's collectives, the same on all ranks."""

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
        """Prepare memory of the CPU for copies; without it they are slower, and right."""
        ...

    def unpin(self) -> None:
        """Let go of what was prepared: nothing is copied any more."""
        ...

    def capture(
        self,
        sections: Sequence[Section],
        live: Sequence[torch.Tensor | None],
        own: torch.Tensor,
        state_free: Callable[[], None],
    ) -> None:
        """Fill `own` from the tensors of the last `moment`, or begin to, from its first byte.

        Args:
            sections: where each tensor lies.
            live: the tensors.
            own: shared memory.
            state_free: called once, in any thread, as soon as nothing reads the live state any
                more; at the latest within `wait_captured`, which raises what it raises.
        """
        ...

    def hold_live(
        self, sections: Sequence[Section], live: Sequence[torch.Tensor | None], size_bytes: int
    ) -> None:
        """Send the tensors of the last `moment`, as a part of that size, and fill no replica."""
        ...

    def read(self, start: int, target: torch.Tensor) -> None:
        """Fill `target`, in CPU memory, with the bytes from `start` on of what `hold_live` got.

        Raises:
            RuntimeError: a copy failed.
        """
        ...

    def aside(self) -> AbstractContextManager[Any]:
        """Return what to look at captured live state in: training does not wait for it."""
        ...

    def captured_bytes(self) -> int:
        """Return how many bytes, from the first on, are filled in `own`, or may be read."""
        ...

    def stop_yielding_to_training(self) -> None:
        """Go on with `own` whether or not training communicates: no more chunks are to come."""
        ...

    def wait_captured(self) -> int:
        """Return when `own` is whole: since when, in nanoseconds of CLOCK_MONOTONIC.

        Called when all rounds of the part were waited for.

        Raises:
            RuntimeError: a copy failed.
        """
        ...

    def follow_training(self, work: Any) -> None:
        """Have rounds that are posted next come after what the calling thread has asked for.

        Args:
            work: likewise a collective that was not waited for, by its handle; None: there is none.
        """
        ...

    def post(
        self,
        number: int,
        sends: Sequence[Send],
        receives: Sequence[Receive],
        arrived: Arrived,
        after: Sequence[Transfer],
    ) -> Transfer:
        """Start round `number` of the part that is captured.

        Args:
            number: of the round; the same at sender and receiver.
            sends: of the own part.
            receives: of other ranks' parts.
            arrived: called once, in any thread, when everything was sent and received.
            after: rounds whose sub-buffers this one may take, once they are done; each round is
                named once.
        """
        ...


class CpuDevice:
    """memcpy, and what is sent goes straight between the two machines' shared memory.

    Args:
        post: by which pieces in CPU memory travel.
    """

    copy_link: Link | None = None
    launches_in_order = False

    def __init__(self, post: Post) -> None:
        self._post = post
        self._own = torch.empty(0, dtype=torch.uint8)
        self._pieces = LivePieces(copy_all, lambda size: torch.empty(size, dtype=torch.uint8))
        self._captured_bytes = 0
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

    def unpin(self) -> None:
        """Nothing to do."""

    def capture(
        self,
        sections: Sequence[Section],
        live: Sequence[torch.Tensor | None],
        own: torch.Tensor,
        state_free: Callable[[], None],
    ) -> None:
        """Copy section by section; done on return."""
        for section, tensor in zip(sections, live, strict=True):
            copy_section(section, own, tensor)
        self._own = own
        self._captured_bytes = own.numel()
        self._captured_ns = time.monotonic_ns()
        self._pieces.let_go()
        state_free()

    def hold_live(
        self, sections: Sequence[Section], live: Sequence[torch.Tensor | None], size_bytes: int
    ) -> None:
        """See `Device.hold_live`."""
        self._pieces.hold(sections, live, size_bytes)
        self._captured_bytes = size_bytes
        self._captured_ns = time.monotonic_ns()

    def read(self, start: int, target: torch.Tensor) -> None:
        """See `Device.read`."""
        self._pieces.read(start, target)

    def aside(self) -> AbstractContextManager[Any]:
        """Nothing to do."""
        return nullcontext()

    def captured_bytes(self) -> int:
        """All of it."""
        return self._captured_bytes

    def stop_yielding_to_training(self) -> None:
        """Nothing to do."""

    def wait_captured(self) -> int:
        """Return when `capture` returned."""
        return self._captured_ns

    def follow_training(self, work: Any) -> None:
        """Nothing to do, likewise."""

    def post(
        self,
        number: int,
        sends: Sequence[Send],
        receives: Sequence[Receive],
        arrived: Arrived,
        after: Sequence[Transfer],
    ) -> Transfer:
        """Start sends and receives, tagged by the round; there are no sub-buffers."""
        del after
        own = None if self._pieces.is_held else self._own
        return post_direct(self._post, number, (sends, receives), arrived, own, self._pieces)


def post_direct(
    post: Post,
    number: int,
    moves: tuple[Sequence[Send], Sequence[Receive]],
    arrived: Arrived,
    own: torch.Tensor | None,
    pieces: LivePieces,
) -> Direct:
    """Start a round that is received where it belongs.

    Args:
        post: by which pieces in CPU memory travel.
        number: see `Device.post`, as for what follows.
        moves: what is sent and received.
        arrived: likewise.
        own: the part that is sent; None: `pieces` of live state are.
        pieces: see there.
    """
    sends, receives = moves
    outgoing: list[tuple[int, torch.Tensor]] = []
    given_back: list[Callable[[], None]] = []
    for send in sends:
        if own is not None:
            outgoing.append((send.rank, own[send.start : send.end]))
        else:
            piece, give_back = pieces.take(send.start, send.end)
            outgoing.append((send.rank, piece))
            given_back.append(give_back)
    incoming = [(receive.rank, receive.target) for receive in receives]
    posted = Direct(post(number, outgoing, incoming), arrived, given_back)
    if given_back:
        pieces.sends(posted.wait_arrived)
    return posted


def post_gloo(
    group: dist.ProcessGroup | None,
    tag: int,
    outgoing: Sequence[tuple[int, torch.Tensor]],
    incoming: Sequence[tuple[int, torch.Tensor]],
) -> list[Any]:
    """Start sends and receives over a group of gloo's: a `Post`, once the group is given."""
    works = [dist.irecv(target, rank, group, tag=tag) for rank, target in incoming]
    return works + [dist.isend(source, rank, group, tag=tag) for rank, source in outgoing]


def wait_all(works: Sequence[Any]) -> None:
    """Return when all of it was sent and received.

    Raises:
        RuntimeError: a peer is gone.
    """
    for work in works:
        if work is not None:
            work.wait()


class Direct:
    """A round that is received where it belongs: a `Transfer`.

    Args:
        works: what to wait for.
        arrived: see `Device.post`.
        sent: is called when all was sent and received.
    """

    def __init__(
        self, works: Sequence[Any], arrived: Arrived, sent: Sequence[Callable[[], None]]
    ) -> None:
        self._began_ns = time.monotonic_ns()
        self._works = works
        self._sent = sent
        self._arrived: Arrived | None = arrived

    def wait_arrived(self) -> None:
        """See `Transfer`."""
        if self._arrived is None:
            return
        wait_all(self._works)
        for sent in self._sent:
            sent()
        self._arrived(self._began_ns, time.monotonic_ns())
        self._arrived = None

    def wait(self) -> None:
        """See `Transfer`."""
        self.wait_arrived()
