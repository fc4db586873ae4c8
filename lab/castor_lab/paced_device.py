"""A stand-in for a GPU's copy engine: the same steps in CPU memory, copies at a given rate.

For machines without a GPU. Copies to the replicas' shared memory take as long as they would over a
hop of `copy_bps`. As on a GPU, a job's `send` says what is sent: the own replica, once it is copied
(`PacedCapture`), or live state, received through sub-buffers (`PacedDevice`), so that schemes
differ as they do in Gemini. A run with it is labelled "paced", as runs with paced layers are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from castor_policy.chunk_schedule import Link
from castor_policy.job_options import NCCL
from castor_runtime.trainer.agent_link import TrainerSettings
from castor_runtime.trainer.captured_device import CapturedDevice
from castor_runtime.trainer.copy_engine import Span
from castor_runtime.trainer.device import Device, Post, wait_all
from castor_runtime.trainer.idle_spans import Gate
from castor_runtime.trainer.joining import Exchanging
from castor_runtime.trainer.staged_device import Crossing, StagedDevice
from castor_runtime.trainer.staging import Copy, copy_all

PACED_ALPHA_NS = 20_000
"""Start-up time of a paced copy; that of an asynchronous copy to pinned memory is of this size."""


def paced_device(
    settings: TrainerSettings, gate: Gate, exchanging: Exchanging, sub_buffer_bytes: int
) -> Device:
    """Return the device of a job that names this function (`castor_lab.pacing.PACED_DEVICE`)."""
    copy_bps = settings.device.paced_copy_bps
    if settings.traffic.send == NCCL:
        return PacedDevice(exchanging.post, gate, copy_bps, sub_buffer_bytes)
    return PacedCapture(exchanging.post, copy_bps, sub_buffer_bytes)


class PacedCapture(CapturedDevice):
    """A copy engine that sleeps, and what is sent from the own replica.

    Args:
        post: by which pieces travel.
        copy_bps: rate of the copy engine, bits per second, > 0.
        piece_bytes: in which the own replica is copied.

    Raises:
        ValueError: the rate is not positive.
    """

    def __init__(self, post: Post, copy_bps: int, piece_bytes: int) -> None:
        super().__init__(PacedAccelerator(post, copy_bps), post, piece_bytes)


class PacedDevice(StagedDevice):
    """CPU memory in place of the GPU's, and a copy engine that sleeps.

    Args:
        post: by which pieces travel.
        gate: knows when training communicates.
        copy_bps: rate of the copy engine, bits per second, > 0.
        sub_buffer_bytes: R/p, the size of the pieces in which the own replica is copied.

    Raises:
        ValueError: the rate is not positive.
    """

    def __init__(self, post: Post, gate: Gate, copy_bps: int, sub_buffer_bytes: int) -> None:
        super().__init__(PacedAccelerator(post, copy_bps), gate, sub_buffer_bytes)


class PacedAccelerator:
    """An `Accelerator` in CPU memory.

    Args:
        post: by which pieces travel.
        copy_bps: rate of the copy engine, bits per second, > 0.

    Raises:
        ValueError: the rate is not positive.
    """

    launches_in_order = False

    def __init__(self, post: Post, copy_bps: int) -> None:
        self._post = post
        self._link = Link(PACED_ALPHA_NS, copy_bps)

    @property
    def copy_link(self) -> Link | None:
        """The given rate."""
        return self._link

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

    def preparing(self) -> AbstractContextManager[Any]:
        """Nothing to do."""
        return nullcontext()

    def aside(self) -> AbstractContextManager[Any]:
        """Nothing to do."""
        return nullcontext()

    def allocate(self, size_bytes: int) -> torch.Tensor:
        """Return CPU memory."""
        return torch.empty(size_bytes, dtype=torch.uint8)

    def exchange(
        self,
        number: int,
        gathers: Sequence[Copy],
        outgoing: Sequence[tuple[int, torch.Tensor]],
        incoming: Sequence[tuple[int, torch.Tensor]],
        landings: Sequence[Copy],
    ) -> Crossing:
        """Gather, and start sends and receives, tagged by the round; copy out when asked."""
        copy_all(gathers)
        began_ns = time.monotonic_ns()
        works = self._post(number, outgoing, incoming)

        def arrived() -> Span:
            wait_all(works)
            return began_ns, time.monotonic_ns()

        def landed() -> Sequence[Span]:
            return [self.copy([landing]) for landing in landings]

        return Crossing(arrived, landed, lambda wait: wait())

    def follow_training(self, work: Any) -> None:
        """Nothing to do: rounds are posted by time."""

    def begin(self, copies: Sequence[Copy]) -> Callable[[], Span]:
        """Copy when it is waited for."""
        return partial(self.copy, copies)

    def copy(self, copies: Sequence[Copy]) -> Span:
        """Copy, and sleep for what a slower hop would have taken longer."""
        began_ns = time.monotonic_ns()
        copy_all(copies)
        due_ns = began_ns + self._link.transfer_ns(sum(target.numel() for _, target in copies))
        while (now_ns := time.monotonic_ns()) < due_ns:
            time.sleep((due_ns - now_ns) / 1e9)
        return began_ns, now_ns
