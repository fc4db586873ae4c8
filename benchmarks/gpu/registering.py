"""How long it takes to pin /dev/shm, with one process and with four, and to end one that has.

python benchmarks/gpu/registering.py PATH BYTES    # a process of its own: pins, says so, waits
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from gpu import GIB, MIB, Gpu, Line

from castor_runtime.arena.segments import create_file

_SIZES_GIB = (1, 8, 64)
_PROCESSES = 4
_LIMIT_S = 120.0


def registering(gpu: Gpu, _: Namespace) -> list[Line]:
    """Pin files in shared memory from processes of their own, and kill these."""
    lines: list[Line] = []
    room = min(shutil.disk_usage("/dev/shm").free, psutil.virtual_memory().available) // 2
    sizes = [MIB, 2 * MIB] if gpu.rehearses else [one * GIB for one in _SIZES_GIB]
    fitting = [size for size in sizes if size <= room]
    for size in fitting:
        lines += _tried(gpu, [size])
    if fitting:
        lines += _tried(gpu, [fitting[-1] // _PROCESSES] * _PROCESSES)
    if left_out := [size for size in sizes if size > room]:
        told = ", ".join(f"{size / GIB:g}" for size in left_out)
        lines.append(Line(f"not tried, for want of memory: {told} GiB", None, ""))
    return lines


def _tried(gpu: Gpu, sizes: Sequence[int]) -> list[Line]:
    total = sum(sizes)
    name = f"{total / GIB:.3g} GiB by {len(sizes)} process{'es' if len(sizes) > 1 else ''}"
    paths = [Path(f"/dev/shm/castor-gpu-check-{os.getpid()}-{one}") for one in range(len(sizes))]
    rehearses = ["--rehearse"] if gpu.rehearses else []
    running = [
        subprocess.Popen(
            [sys.executable, __file__, str(path), str(size), *rehearses],
            stdout=subprocess.PIPE,
            text=True,
        )
        for path, size in zip(paths, sizes, strict=True)
    ]
    try:
        said = [_line_of(one) for one in running]
        began = time.perf_counter()
        for one in running:
            one.send_signal(signal.SIGKILL)
        for one in running:
            one.wait(_LIMIT_S)
        ended_s = time.perf_counter() - began
    finally:
        for one in running:
            one.kill()
            one.wait()
            if one.stdout is not None:
                one.stdout.close()
        for path in paths:
            path.unlink(missing_ok=True)
    seconds = [float(words[1]) for words in said if words[0] == "pinned"]
    if len(seconds) < len(running):
        return [Line(f"cudaHostRegister of {name}: {' '.join(said[0])}", None, "refused")]
    return [
        Line(f"cudaHostRegister of {name}", max(seconds), "s"),
        Line("  a GiB of it", max(seconds) / (total / GIB), "s"),
        Line("  SIGKILL to the end of them", ended_s, "s"),
    ]


def _line_of(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    words = process.stdout.readline().split()
    return words or ["it", "died"]


def main(path: str, size_bytes: int, *, rehearses: bool) -> None:
    gpu = Gpu(rehearses=rehearses)
    mapped = create_file(Path(path), size_bytes)
    memory = torch.frombuffer(mapped, dtype=torch.uint8)
    memory.zero_()
    torch.zeros(1, device=gpu.device)
    gpu.cuda.synchronize()
    began = time.perf_counter()
    code = int(gpu.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), 0))
    seconds = time.perf_counter() - began
    print(f"error {code}" if code else f"pinned {seconds:.6f}", flush=True)
    time.sleep(_LIMIT_S)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), rehearses="--rehearse" in sys.argv)
