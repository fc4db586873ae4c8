"""How bytes get from live state to shared memory and to peers: on the CPU, and with CUDA.

Both do the same steps for the replicator: `capture` fills this machine's own replica, `post` starts
a round of sends and receives, and what it returns is waited for. On the CPU the own replica is what
is sent, so the live state is free once it is captured. With CUDA pieces are sent out of GPU memory,
which spares the way over PCIe, and the state is free when the last piece has been gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist

from castor_runtime.trainer.sections import Section, copy_section

_cuda: Any = torch.cuda  # which has no types for some of its names


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

    def wait(self) -> None:
        """Return when everything received lies in shared memory; raise what went wrong."""
        ...


class Device(Protocol):
    """A way to capture and to exchange; see the module's head."""

    sends_live: bool
    """Live state is read until the last `post` has returned, not just until `capture` has."""

    def pin(self, memory: torch.Tensor) -> None:
        """Prepare shared memory for copies; called in the thread that makes them."""
        ...

    def capture(
        self,
        sections: Sequence[Section],
        live: Sequence[torch.Tensor | None],
        own: torch.Tensor,
    ) -> None:
        """Fill `own` from the live tensors; done on return."""
        ...

    def post(self, number: int, sends: Sequence[Send], receives: Sequence[Receive]) -> Transfer:
        """Start round `number` with the part that was captured last."""
        ...


class CpuDevice:
    """memcpy and gloo, straight between the two machines' shared memory."""

    sends_live = False

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._own = torch.empty(0, dtype=torch.uint8)

    def pin(self, memory: torch.Tensor) -> None:
        """Nothing to do."""

    def capture(
        self,
        sections: Sequence[Section],
        live: Sequence[torch.Tensor | None],
        own: torch.Tensor,
    ) -> None:
        """Copy section by section."""
        for section, tensor in zip(sections, live, strict=True):
            copy_section(section, own, tensor)
        self._own = own

    def post(self, number: int, sends: Sequence[Send], receives: Sequence[Receive]) -> Transfer:
        """Start gloo's sends and receives, tagged by the round."""
        works = [
            dist.irecv(receive.target, receive.rank, self._group, tag=number)
            for receive in receives
        ]
        works += [
            dist.isend(self._own[send.start : send.end], send.rank, self._group, tag=number)
            for send in sends
        ]
        return _Works(works)


class _Works:
    def __init__(self, works: Sequence[Any]) -> None:
        self._works = works

    def wait(self) -> None:
        for work in self._works:
            if work is not None:
                work.wait()


class CudaDevice:
    """NCCL out of GPU memory, a copy stream, and shared memory that is pinned.

    Each of p sub-buffers has room for a piece to send and for the pieces that are received with it;
    a sub-buffer is used again after its round was waited for, so at most p rounds may be under way.

    Args:
        group: NCCL's, for nothing but checkpoints.
        device: of this rank.
        parts: p.
    """

    sends_live = True

    def __init__(self, group: dist.ProcessGroup, device: torch.device, parts: int) -> None:
        self._group = group
        self._device = device
        self._stream = _cuda.Stream(device)
        self._copies = _cuda.Stream(device)
        self._buffers: list[list[torch.Tensor]] = [[] for _ in range(parts)]
        self._sections: list[tuple[Section, torch.Tensor | None]] = []

    def pin(self, memory: torch.Tensor) -> None:
        """Register shared memory with the driver, so that copies run at full speed beside others.

        Raises:
            RuntimeError: the driver refuses it, most often by `ulimit -l`.
        """
        torch.cuda.set_device(self._device)
        result = _cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), 0)
        if int(result) != 0:
            raise RuntimeError(
                f"cudaHostRegister of {memory.numel()} B failed with error {int(result)}: "
                "raise the limit of locked memory (ulimit -l)"
            )

    def capture(
        self,
        sections: Sequence[Section],
        live: Sequence[torch.Tensor | None],
        own: torch.Tensor,
    ) -> None:
        """Copy on the copy stream, behind what training has queued so far."""
        self._sections = list(zip(sections, live, strict=True))
        self._copies.wait_stream(torch.cuda.default_stream(self._device))
        self._stream.wait_stream(torch.cuda.default_stream(self._device))
        with torch.cuda.stream(self._copies):
            for section, tensor in self._sections:
                target = section.view(own)
                if tensor is None:
                    target.zero_()
                else:
                    target.copy_(tensor.detach(), non_blocking=True)
        self._copies.synchronize()

    def post(self, number: int, sends: Sequence[Send], receives: Sequence[Receive]) -> Transfer:
        """Gather the piece into a sub-buffer and exchange in one NCCL group call."""
        sizes = [send.end - send.start for send in sends]
        sizes += [receive.target.numel() for receive in receives]
        with torch.cuda.stream(self._stream):
            buffers = self._room(number % len(self._buffers), sizes)
            operations = []
            for send, buffer in zip(sends, buffers, strict=False):
                self._gather(send, buffer)
                operations.append(dist.P2POp(dist.isend, buffer, send.rank, self._group))
            # What was gathered may be written again when this round has been posted.
            gathered = self._stream.record_event()
            incoming = list(zip(receives, buffers[len(sends) :], strict=True))
            for receive, buffer in incoming:
                operations.append(dist.P2POp(dist.irecv, buffer, receive.rank, self._group))
            works = dist.batch_isend_irecv(operations) if operations else []
        gathered.synchronize()
        return _CudaRound(works, incoming, self._copies)

    def _room(self, slot: int, sizes: Sequence[int]) -> list[torch.Tensor]:
        buffers = self._buffers[slot]
        for index, size in enumerate(sizes):
            if index == len(buffers):
                buffers.append(torch.empty(size, dtype=torch.uint8, device=self._device))
            elif buffers[index].numel() < size:
                buffers[index] = torch.empty(size, dtype=torch.uint8, device=self._device)
        return [buffers[index][:size] for index, size in enumerate(sizes)]

    def _gather(self, send: Send, buffer: torch.Tensor) -> None:
        for section, tensor in self._sections:
            start = max(send.start, section.offset)
            end = min(send.end, section.offset + section.size_bytes)
            if start >= end:
                continue
            target = buffer[start - send.start : end - send.start]
            if tensor is None:
                target.zero_()
                continue
            raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            piece = raw[start - section.offset : end - section.offset]
            target.copy_(piece, non_blocking=True)


class _CudaRound:
    def __init__(
        self,
        works: Sequence[Any],
        incoming: Sequence[tuple[Receive, torch.Tensor]],
        copies: torch.cuda.Stream,
    ) -> None:
        self._works = works
        self._incoming = incoming
        self._copies = copies

    def wait(self) -> None:
        with torch.cuda.stream(self._copies):
            for work in self._works:
                work.wait()
            for receive, buffer in self._incoming:
                receive.target.copy_(buffer, non_blocking=True)
        self._copies.synchronize()
