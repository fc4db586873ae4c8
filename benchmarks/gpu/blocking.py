"""What keeps the host waiting behind a kernel that spins on another stream.

NCCL's kernels spin until their peers come. Whatever blocks here blocks for as long as a peer is
late, and where the peer waits for this rank's host in turn, for ever (nccl#1192, pytorch#174288).
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable

import torch
from gpu import MIB, Gpu, Line

_SPIN_S = 0.4


def blocking(gpu: Gpu, _: Namespace) -> list[Line]:
    """Do one thing after the other while a kernel spins beside; say how long the host was held."""
    small = torch.zeros(1024, device=gpu.device)
    other = gpu.cuda.Stream(gpu.device)
    kept: list[torch.Tensor] = []
    host = torch.zeros(64 * MIB, dtype=torch.uint8)
    runtime = gpu.cuda.cudart()

    def launch() -> None:
        with gpu.cuda.stream(other):
            small.add_(1)

    def launch_and_end() -> None:
        launch()
        other.synchronize()

    def forget() -> None:
        gpu.cuda.empty_cache()

    def before_forget() -> None:
        kept.clear()
        freed = torch.empty(256 * MIB if not gpu.rehearses else MIB, device=gpu.device)
        del freed

    def allocate() -> None:
        size = MIB if gpu.rehearses else 768 * MIB
        kept.append(torch.empty(size, dtype=torch.uint8, device=gpu.device))

    tried: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        ("a launch on another stream", launch, lambda: None),
        ("a launch on another stream, and its end", launch_and_end, lambda: None),
        ("event.query()", lambda: _recorded(gpu).query(), lambda: None),
        ("cudaMalloc of a new block", allocate, lambda: None),
        ("empty_cache()", forget, before_forget),
        ("pin_memory of 64 MiB", lambda: kept.append(gpu.pinned(64 * MIB)), lambda: None),
        (
            "cudaHostRegister of 64 MiB",
            lambda: runtime.cudaHostRegister(host.data_ptr(), host.numel(), 0),
            lambda: None,
        ),
        (
            "cudaHostUnregister of 64 MiB",
            lambda: runtime.cudaHostUnregister(host.data_ptr()),
            lambda: None,
        ),
        ("the first kernel of its kind", lambda: _first_kernel(gpu, other, small), lambda: None),
    ]
    launch_and_end()
    gpu.spin(0.001)
    lines: list[Line] = []
    for what, run, prepare in tried:
        prepare()
        gpu.cuda.synchronize()
        gpu.spin(_SPIN_S)
        began = time.perf_counter()
        run()
        held_s = time.perf_counter() - began
        gpu.cuda.synchronize()
        told = "ms: BLOCKS" if held_s > _SPIN_S / 2 else "ms"
        lines.append(Line(what, held_s * 1e3, told))
    return lines


def _recorded(gpu: Gpu) -> torch.cuda.Event:
    event: torch.cuda.Event = gpu.cuda.Event()
    event.record()
    return event


def _first_kernel(gpu: Gpu, stream: torch.cuda.Stream, small: torch.Tensor) -> None:
    with gpu.cuda.stream(stream):
        torch.special.bessel_j1(small)  # used by nobody, so not loaded yet
