"""Castor's two ways out of a GPU, as the parts use them; in a rehearsal beside a stand-in."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from gpu import Gpu, shared_memory

from castor_lab.paced_device import PacedCapture, PacedDevice
from castor_runtime.state.sections import Section
from castor_runtime.trainer.captured_device import CapturedDevice
from castor_runtime.trainer.cuda_device import CudaCapture, CudaDevice
from castor_runtime.trainer.device import Device, Receive, Send, Transfer
from castor_runtime.trainer.idle_spans import Gate
from castor_runtime.trainer.staged_device import StagedDevice

_COPIES_BPS = 8_000_000_000
"""What the stand-in's copy engine does."""


def capturing(gpu: Gpu, piece_bytes: int) -> contextlib.closing[CapturedDevice]:
    """Give the way that is Castor's default: into CPU memory, from where the CPU would send."""
    return contextlib.closing(
        PacedCapture(_post_to_self, _COPIES_BPS, piece_bytes)
        if gpu.rehearses
        else CudaCapture(_post_to_self, gpu.device, piece_bytes)
    )


def exchanging(gpu: Gpu, chunk_bytes: int) -> contextlib.closing[StagedDevice]:
    """Give the way by NCCL (`--send nccl`), out of sub-buffers, from this rank to itself."""
    return contextlib.closing(
        PacedDevice(_post_to_self, Gate(), _COPIES_BPS, chunk_bytes)
        if gpu.rehearses
        else CudaDevice(dist.new_group(backend="nccl"), gpu.device, Gate(), chunk_bytes)
    )


@contextlib.contextmanager
def pinned_memory(device: Device, size_bytes: int) -> Iterator[torch.Tensor]:
    """Give memory such as replicas lie in, pinned for as long as it is there."""
    with shared_memory(size_bytes) as memory:
        device.pin(memory)
        try:
            yield memory
        finally:
            device.unpin()


def begin(
    device: Device,
    sections: Sequence[Section],
    live: Sequence[torch.Tensor | None],
    own: torch.Tensor,
) -> None:
    """Begin a checkpoint of the tensors as they are now."""
    with device.moment():
        pass
    device.capture(sections, live, own, lambda: None)


def send_to_self(
    device: Device, own: torch.Tensor, remote: torch.Tensor, chunk_bytes: int, in_flight: int
) -> None:
    """Do all rounds of a checkpoint that has begun, so many at a time; in any thread."""
    device.enter_thread()
    under_way: deque[Transfer] = deque()
    total = own.numel()
    for number, start in enumerate(range(0, total, chunk_bytes)):
        end = min(start + chunk_bytes, total)
        if len(under_way) == in_flight:
            under_way.popleft().wait()
        under_way.append(
            device.post(
                number, [Send(0, start, end)], [Receive(0, remote[start:end])], lambda *_: None, []
            )
        )
    device.stop_yielding_to_training()
    for transfer in under_way:
        transfer.wait()
    device.wait_captured()


def _post_to_self(
    _number: int,
    outgoing: Sequence[tuple[int, torch.Tensor]],
    incoming: Sequence[tuple[int, torch.Tensor]],
) -> list[Any]:
    """Have what is sent be what is received."""
    for (_, source), (_, target) in zip(outgoing, incoming, strict=True):
        target.copy_(source)
    return []
