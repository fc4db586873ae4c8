"""Sub-buffers and the copy thread over NCCL, from this rank to itself: bytes and speed."""

from __future__ import annotations

import time
from argparse import Namespace

import torch
from gpu import MIB, Gpu, Line, verdict
from ways import begin, exchanging, pinned_memory, send_to_self

from castor_runtime.state.sections import lay_out, part_bytes


def sub_buffers(gpu: Gpu, options: Namespace) -> list[Line]:
    """Send a part of two tensors, one round at a time and four."""
    size_bytes = options.megabytes * MIB
    chunk_bytes = max(1, options.megabytes // 16) * MIB
    lines: list[Line] = []
    seconds: dict[int, float] = {}
    floats = size_bytes // 4 - 3
    sections = lay_out([("state", torch.float32, (floats,)), ("odd", torch.uint8, (5,))])
    live = [
        torch.randn(floats, device=gpu.device),
        torch.arange(5, dtype=torch.uint8, device=gpu.device),
    ]
    total = part_bytes(sections)
    for in_flight, kind in ((1, "unpipelined"), (4, "pipelined")):
        with exchanging(gpu, chunk_bytes) as device, pinned_memory(device, 2 * total) as memory:
            own, remote = memory[:total], memory[total:]
            times: list[float] = []
            for _ in range(4):  # the first allocates
                memory.fill_(7)
                began = time.monotonic()
                begin(device, sections, live, own)
                send_to_self(device, own, remote, chunk_bytes, in_flight)
                times.append(time.monotonic() - began)
            equal = torch.equal(own, remote)
            for section, tensor in zip(sections, live, strict=True):
                equal = equal and torch.equal(section.view(remote), tensor.cpu())
            peak_bytes = device.peak_buffer_bytes
        seconds[in_flight] = min(times[1:])
        lines += [
            Line(f"own copy and exchange, {kind}", 2 * total / seconds[in_flight] / 1e9, "GB/s"),
            Line(f"peak of its sub-buffers, {kind}", peak_bytes / MIB, "MiB"),
            verdict(f"its bytes, {kind}", equal=equal),
        ]
    return [*lines, Line("pipelined beside unpipelined", seconds[1] / seconds[4], "x")]
