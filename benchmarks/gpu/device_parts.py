"""What one GPU shows without training: pinned copies, copies beside computing, sub-buffers."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from castor_lab.paced_device import PacedAccelerator
from castor_runtime.arena.segments import create_file
from castor_runtime.state.sections import lay_out, part_bytes
from castor_runtime.trainer.copy_engine import Span
from castor_runtime.trainer.cuda_device import CudaDevice, measure_copy_link, pin
from castor_runtime.trainer.device import Device, Receive, Send, Transfer
from castor_runtime.trainer.idle_spans import Gate
from castor_runtime.trainer.staged_device import StagedDevice
from castor_runtime.trainer.staging import Copy

MIB = 1 << 20
_cuda: Any = torch.cuda  # which has no types for some of its names


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table.

    Attributes:
        what: was measured.
        value: of it; None where `unit` says all.
        unit: of `value`.
        right: False where it is not what it has to be.
    """

    what: str
    value: float | None
    unit: str
    right: bool = True


@contextlib.contextmanager
def shared_memory(size_bytes: int) -> Iterator[torch.Tensor]:
    """Give memory such as replicas lie in, faulted in; it is gone afterwards."""
    path = Path("/dev/shm") / f"castor-gpu-check-{os.getpid()}"
    mapped = create_file(path, size_bytes)
    try:
        memory = torch.frombuffer(mapped, dtype=torch.uint8)
        memory.zero_()
        yield memory
    finally:
        path.unlink()


def copy_bandwidth(device: torch.device, size_bytes: int) -> list[Line]:
    """Copy from GPU to shared memory, before and after it is pinned."""
    source = torch.randint(0, 255, (size_bytes,), dtype=torch.uint8, device=device)
    lines: list[Line] = []
    with shared_memory(size_bytes) as memory:
        unpinned_s = _best_s(lambda: memory.copy_(source), device)
        pin(memory, device)
        try:
            pinned_s = _best_s(lambda: memory.copy_(source, non_blocking=True), device)
            same = torch.equal(memory, source.cpu())
        finally:
            _cuda.cudart().cudaHostUnregister(memory.data_ptr())
    lines.append(Line("copy to shared memory, not pinned", size_bytes / unpinned_s / 1e9, "GB/s"))
    lines.append(Line("copy to shared memory, pinned", size_bytes / pinned_s / 1e9, "GB/s"))
    lines.append(Line("pinned beside not pinned", unpinned_s / pinned_s, "x"))
    lines.append(Line("the bytes that arrived", None, "equal" if same else "DIFFERENT", same))
    link = measure_copy_link(device)
    lines.append(Line("copy engine, start-up time", link.alpha_ns / 1e3, "us"))
    lines.append(Line("copy engine, bandwidth", link.bandwidth_bps / 1e9, "Gbps"))
    return lines


def capture_beside_computing(device: torch.device, size_bytes: int) -> list[Line]:
    """Run products of matrices alone and beside a copy on a side stream; both of the same work."""
    left = torch.randn(4096, 4096, dtype=torch.bfloat16, device=device)
    source = torch.zeros(size_bytes, dtype=torch.uint8, device=device)
    target = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)
    side = _cuda.Stream(device)

    def products() -> None:
        result = left
        for _ in range(100):
            result = left @ result * 1e-2

    def beside() -> None:
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(4):
                target.copy_(source, non_blocking=True)
        products()

    products()
    alone_s = _best_s(products, device, sync_all=False)
    beside_s = _best_s(beside, device, sync_all=False)
    return [
        Line("100 products of 4096 x 4096 alone", alone_s * 1e3, "ms"),
        Line(f"the same beside copies of 4 x {size_bytes // MIB} MiB", beside_s * 1e3, "ms"),
        Line("slow-down by the copies", beside_s / alone_s, "x"),
    ]


def sub_buffers(device: torch.device, size_bytes: int, chunk_bytes: int) -> list[Line]:
    """Send a part to this very rank, by NCCL, through Castor's own sub-buffers and copy thread."""
    group = dist.new_group(backend="nccl") if device.type == "cuda" else None
    lines: list[Line] = []
    seconds: dict[int, float] = {}
    sections = lay_out(
        [("state", torch.float32, (size_bytes // 4 - 3,)), ("odd", torch.uint8, (5,))]
    )
    live = [
        torch.randn(size_bytes // 4 - 3, device=device),
        torch.arange(5, dtype=torch.uint8, device=device),
    ]
    total = part_bytes(sections)
    for in_flight in (1, 4):
        staged: StagedDevice = (
            StagedDevice(Loopback(), Gate(), chunk_bytes)
            if group is None
            else CudaDevice(group, device, Gate(), chunk_bytes)
        )
        with shared_memory(2 * total) as memory:
            staged.pin(memory)
            own, remote = memory[:total], memory[total:]
            times: list[float] = []
            for _ in range(4):  # the first allocates
                memory.fill_(7)
                began = time.monotonic()
                staged.capture(sections, live, own, lambda: None)
                _send_to_self(staged, own, remote, chunk_bytes, in_flight)
                times.append(time.monotonic() - began)
            same = torch.equal(own, remote)
            for section, tensor in zip(sections, live, strict=True):
                same = same and torch.equal(section.view(remote), tensor.cpu())
            staged.close()
            if device.type == "cuda":
                _cuda.cudart().cudaHostUnregister(memory.data_ptr())
        seconds[in_flight] = min(times[1:])
        kind = "unpipelined" if in_flight == 1 else "pipelined"
        lines.append(
            Line(f"own copy and exchange, {kind}", 2 * total / seconds[in_flight] / 1e9, "GB/s")
        )
        lines.append(
            Line(f"peak of its sub-buffers, {kind}", staged.peak_buffer_bytes / MIB, "MiB")
        )
        lines.append(Line(f"its bytes, {kind}", None, "equal" if same else "DIFFERENT", same))
    lines.append(Line("pipelined beside unpipelined", seconds[1] / seconds[4], "x"))
    return lines


class Loopback(PacedAccelerator):
    """For a rehearsal without a GPU: what is sent is what is received."""

    def __init__(self) -> None:
        super().__init__(lambda *_: [], 8_000_000_000)

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


def _send_to_self(
    device: Device, own: torch.Tensor, remote: torch.Tensor, chunk_bytes: int, in_flight: int
) -> None:
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


def _best_s(run: Callable[[], object], device: torch.device, *, sync_all: bool = True) -> float:
    """Return the shortest of five runs, by events on the current stream."""
    times: list[float] = []
    for _ in range(5):
        torch.cuda.synchronize(device)
        began, ended = _cuda.Event(enable_timing=True), _cuda.Event(enable_timing=True)
        began.record()
        run()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended) / 1e3)
        if sync_all:
            torch.cuda.synchronize(device)
    return min(times)
