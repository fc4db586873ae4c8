"""Whether a sub-buffer may be memory that training's kernels have still to read.

A tensor is filled, a kernel spins, the tensor is cloned, and freed: to torch its memory is free at
once, as whatever uses it next is queued behind the clone. On another stream nothing is behind it.
"""

from __future__ import annotations

import threading
from argparse import Namespace
from collections.abc import Callable
from functools import partial

import torch
from gpu import MIB, Gpu, Line, verdict
from ways import begin, exchanging, pinned_memory, send_to_self

from castor_runtime.state.sections import lay_out, part_bytes

_SIZE_BYTES = 64 * MIB
_SPIN_S = 0.3


def race(gpu: Gpu, _: Namespace) -> list[Line]:
    """Try it with memory of the training stream's pool, which fails, and with Castor's own."""
    size_bytes = MIB if gpu.rehearses else _SIZE_BYTES
    other = gpu.cuda.Stream(gpu.device)

    def carelessly() -> None:
        buffer = torch.empty(size_bytes, dtype=torch.uint8, device=gpu.device)
        with gpu.cuda.stream(other):
            buffer.fill_(7)

    seen = not _is_intact(gpu, size_bytes, carelessly)
    told = "corrupts, as it must" if seen else "unseen: this says nothing"
    lines = [Line("another stream's buffer of training's pool", None, told, seen or gpu.rehearses)]
    for in_flight in (1, 4):
        sections = lay_out([("state", torch.uint8, (size_bytes * in_flight,))])
        total = part_bytes(sections)
        live = torch.zeros(size_bytes * in_flight, dtype=torch.uint8, device=gpu.device)
        with exchanging(gpu, size_bytes) as device, pinned_memory(device, 2 * total) as memory:
            own, remote = memory[:total], memory[total:]
            begin(device, sections, [live], own)
            send = partial(send_to_self, device, own, remote, size_bytes, in_flight)
            intact = _is_intact(gpu, size_bytes, send)
        lines.append(verdict(f"a clone beside Castor's sub-buffers, {in_flight}", equal=intact))
    return lines


def _is_intact(gpu: Gpu, size_bytes: int, use: Callable[[], object]) -> bool:
    gpu.cuda.synchronize()
    gpu.cuda.empty_cache()
    filled = torch.full((size_bytes,), 3, dtype=torch.uint8, device=gpu.device)
    gpu.spin(_SPIN_S)
    clone = filled.clone()
    del filled
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    gpu.cuda.synchronize()
    return bool((clone == 3).all())
