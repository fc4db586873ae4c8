"""Castor's two ways out of a GPU, as the parts use them; in a rehearsal beside a stand-in."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from gpu import Gpu, shared_memory

from castor_lab.paced_device import PacedAccelerator
from castor_runtime.state.sections import Section, lay_out, part_bytes
from castor_runtime.trainer.captured_device import CapturedDevice
from castor_runtime.trainer.copy_engine import Span
from castor_runtime.trainer.cuda_device import CudaCapture, CudaDevice
from castor_runtime.trainer.device import Device, Receive, Send, Transfer
from castor_runtime.trainer.idle_spans import Gate
from castor_runtime.trainer.staged_device import StagedDevice
from castor_runtime.trainer.staging import Copy

_COPIES_BPS = 8_000_000_000
"""What the stand-in's copy engine does."""


def _post_nothing(_number: int, _outgoing: object, _incoming: object) -> list[object]:
    """There is nobody to send to."""
    return []


class Loopback(PacedAccelerator):
    """For a rehearsal without a GPU: what is sent is what is received."""

    def __init__(self) -> None:
        super().__init__(_post_nothing, _COPIES_BPS)

    def exchange(
        self,
        number: int,
        gathers: Sequence[Copy],
        outgoing: Sequence[tuple[int, torch.Tensor]],
        incoming: Sequence[tuple[int, torch.Tensor]],
    ) -> Callable[[], Span]:
        """Copy the one to the other."""
        wait = super().exchange(number, gathers, [], [])
        for (_, source), (_, target) in zip(outgoing, incoming, strict=True):
            target.copy_(source)
        return wait


class OwnWay:
    """Captures as by default: into CPU memory, from where the CPU would send."""

    def __init__(self, gpu: Gpu, piece_bytes: int) -> None:
        self.device: CapturedDevice = (
            CapturedDevice(Loopback(), _post_nothing, piece_bytes)
            if gpu.rehearses
            else CudaCapture(_post_nothing, gpu.device, piece_bytes)
        )

    def capture(
        self,
        sections: Sequence[Section],
        live: Sequence[torch.Tensor | None],
        own: torch.Tensor,
    ) -> None:
        """Begin to copy the tensors of the last moment."""
        self.device.capture(sections, live, own, lambda: None)

    def finish(self) -> None:
        """Return once all of it is there."""
        self.device.wait_captured()


@contextlib.contextmanager
def own_way(gpu: Gpu, piece_bytes: int) -> Iterator[OwnWay]:
    """Give the way that is Castor's default."""
    way = OwnWay(gpu, piece_bytes)
    try:
        yield way
    finally:
        way.device.close()


class ExchangeWay:
    """Sends out of sub-buffers by NCCL (`--send nccl`), from this rank to itself."""

    def __init__(self, gpu: Gpu, chunk_bytes: int) -> None:
        self._gpu = gpu
        self._chunk_bytes = chunk_bytes
        self.device: StagedDevice = (
            StagedDevice(Loopback(), Gate(), chunk_bytes)
            if gpu.rehearses
            else CudaDevice(dist.new_group(backend="nccl"), gpu.device, Gate(), chunk_bytes)
        )
        self._memory = contextlib.ExitStack()

    def start(self, size_bytes: int) -> None:
        """Begin a checkpoint of zeros."""
        sections = lay_out([("state", torch.uint8, (size_bytes,))])
        self._total = part_bytes(sections)
        self._live = torch.zeros(size_bytes, dtype=torch.uint8, device=self._gpu.device)
        memory = self._memory.enter_context(shared_memory(2 * self._total))
        self.device.pin(memory)
        self.own, self.remote = memory[: self._total], memory[self._total :]
        with self.device.moment():
            pass
        self.device.capture(sections, [self._live], self.own, lambda: None)

    def send_to_self(self, in_flight: int) -> None:
        """Send all of it, so many rounds at a time; in any thread."""
        self.device.enter_thread()
        send_to_self(self.device, self.own, self.remote, self._chunk_bytes, in_flight)

    def close(self) -> None:
        """Give its memory back."""
        self.device.close()
        self._memory.close()


@contextlib.contextmanager
def exchange_way(gpu: Gpu, chunk_bytes: int) -> Iterator[ExchangeWay]:
    """Give the way by NCCL."""
    way = ExchangeWay(gpu, chunk_bytes)
    try:
        yield way
    finally:
        way.close()


def send_to_self(
    device: Device, own: torch.Tensor, remote: torch.Tensor, chunk_bytes: int, in_flight: int
) -> None:
    """Do all rounds of a checkpoint that has begun."""
    under_way: deque[Transfer] = deque()
    total = own.numel()
    for number, start in enumerate(range(0, total, chunk_bytes)):
        end = min(start + chunk_bytes, total)
        if len(under_way) == in_flight:
            under_way.popleft().wait()
        under_way.append(
            device.post(
                number, [Send(0, start, end)], [Receive(0, remote[start:end])], lambda *_: None
            )
        )
    device.stop_yielding_to_training()
    for transfer in under_way:
        transfer.wait()
    device.wait_captured()
