"""Copies out of the GPU: pinned and not, through Castor's own way, and beside computing."""

from __future__ import annotations

import time
from argparse import Namespace

import torch
from gpu import MIB, Gpu, Line, shared_memory, verdict
from ways import begin, capturing, pinned_memory

from castor_runtime.state.sections import lay_out, part_bytes
from castor_runtime.trainer.cuda_device import measure_copy_link

OF_MEMCPY = 0.9
"""What Castor's copies are to reach of what one plain copy of the same bytes does."""


def copies(gpu: Gpu, options: Namespace) -> list[Line]:
    """Copy to shared memory, before and after it is pinned, and as a checkpoint is captured."""
    megabytes = options.megabytes
    size_bytes = megabytes * MIB
    source = torch.randint(0, 255, (size_bytes,), dtype=torch.uint8, device=gpu.device)
    lines: list[Line] = []
    with shared_memory(size_bytes) as memory:
        unpinned_s = gpu.best_s(lambda: memory.copy_(source))
    pinned = gpu.pinned(size_bytes)
    memcpy_s = gpu.best_s(lambda: pinned.copy_(source, non_blocking=True))
    lines.append(Line("to shared memory, not pinned", size_bytes / unpinned_s / 1e9, "GB/s"))
    lines.append(Line("to pinned memory: memcpy", size_bytes / memcpy_s / 1e9, "GB/s"))
    lines += _captured(gpu, source, memcpy_s)
    if not gpu.rehearses:
        link = measure_copy_link(gpu.device)
        lines.append(Line("copy engine, start-up time", link.alpha_ns / 1e3, "us"))
        lines.append(Line("copy engine, bandwidth", link.bandwidth_bps / 1e9, "Gbps"))
    return [*lines, *_beside_computing(gpu, megabytes)]


def _captured(gpu: Gpu, source: torch.Tensor, memcpy_s: float) -> list[Line]:
    sections = lay_out([("state", torch.uint8, (source.numel(),))])
    total = part_bytes(sections)
    found: list[float] = []
    with capturing(gpu, 32 * MIB) as device, pinned_memory(device, total) as own:
        for _ in range(5):
            gpu.cuda.synchronize()
            began = time.perf_counter()
            begin(device, sections, [source], own)
            device.wait_captured()
            found.append(time.perf_counter() - began)
        equal = torch.equal(own[: source.numel()], source.cpu())
    share = memcpy_s / min(found)
    return [
        Line("a capture, as of a checkpoint", source.numel() / min(found) / 1e9, "GB/s"),
        Line(
            f"  of what memcpy reaches (at least {OF_MEMCPY:g})",
            share,
            "",
            share >= OF_MEMCPY or gpu.rehearses,
        ),
        verdict("  its bytes", equal=equal),
    ]


def _beside_computing(gpu: Gpu, megabytes: int) -> list[Line]:
    """Run products of matrices alone and beside a copy on a side stream; both of the same work."""
    size_bytes, width = megabytes * MIB, 64 if gpu.rehearses else 4096
    left = torch.randn(width, width, dtype=torch.bfloat16, device=gpu.device)
    source = torch.zeros(size_bytes, dtype=torch.uint8, device=gpu.device)
    target = gpu.pinned(size_bytes)
    side = gpu.cuda.Stream(gpu.device)

    def products() -> None:
        result = left
        for _ in range(100):
            result = left @ result * 1e-2

    def beside() -> None:
        side.wait_stream(gpu.cuda.current_stream())
        with gpu.cuda.stream(side):
            for _ in range(4):
                target.copy_(source, non_blocking=True)
        products()

    products()
    alone_s = gpu.best_s(products)
    beside_s = gpu.best_s(beside)
    return [
        Line(f"100 products of {width} x {width} alone", alone_s * 1e3, "ms"),
        Line(f"the same beside copies of 4 x {megabytes} MiB", beside_s * 1e3, "ms"),
        Line("slow-down by the copies", beside_s / alone_s, "x"),
    ]
