"""Whether idle spans are what torch's profiler sees; of collectives that a kernel stands for.

With one rank there is no network to wait for: a kernel that spins on a stream of its own takes a
collective's place, and its handle makes a stream wait, as NCCL's do.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from gpu import Gpu, Line
from torch.autograd import DeviceType

from castor_lab.fake_cuda import FakeCuda, FakeNccl
from castor_runtime.trainer.cuda_clock import CudaClock
from castor_runtime.trainer.idle_spans import Gate
from castor_runtime.trainer.stream_spans import StreamSpans

LAYERS = 10
COLLECTIVE_S = 0.020
NEAR = 0.05
"""How far a span may be from what the profiler says."""

_MS = 1_000_000


def spans(gpu: Gpu, _: Namespace) -> list[Line]:
    """Measure one iteration's spans by Castor and by the profiler; lay them side by side."""
    found_ns, real_ns, busy_ns = _on_fake() if gpu.rehearses else _on_gpu(gpu)
    off = [abs(one - real) / real for one, real in zip(found_ns, real_ns, strict=True)]
    return [
        Line("network busy in an iteration, by the profiler", busy_ns / 1e6, "ms"),
        Line("spans between collectives, by the profiler", median(real_ns) / 1e6, "ms"),
        Line("the same by Castor", median(found_ns) / 1e6, "ms"),
        Line(f"the most that one is off (at most {NEAR * 100:g})", 100 * max(off), "%", _near(off)),
    ]


def _near(off: Sequence[float]) -> bool:
    return max(off) <= NEAR


class _Work:
    def __init__(self, gpu: Gpu, stream: Any) -> None:
        self._gpu, self._stream = gpu, stream

    def wait(self) -> bool:
        self._gpu.cuda.current_stream().wait_stream(self._stream)
        return True


class _Backend:
    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._stream = gpu.cuda.Stream(gpu.device)

    def all_gather_into_tensor(
        self, out: torch.Tensor, given: torch.Tensor, *, async_op: bool = False
    ) -> _Work:
        del out, given, async_op
        self._stream.wait_stream(self._gpu.cuda.current_stream())
        with self._gpu.cuda.stream(self._stream):
            self._gpu.spin(COLLECTIVE_S)
        return _Work(self._gpu, self._stream)


def _on_gpu(gpu: Gpu) -> tuple[list[int], list[int], int]:
    watched = StreamSpans(Gate(), CudaClock(gpu.device))
    backend: Any = _Backend(gpu)
    watched.install(backend)
    piece = torch.zeros(1024, device=gpu.device)
    matrix = torch.randn(4096, 4096, device=gpu.device)

    def iterate() -> Any:
        for _ in range(LAYERS):
            backend.all_gather_into_tensor(piece, piece, async_op=True).wait()
            torch.mm(matrix, matrix)
        watched.before_update()
        return watched.end_iteration()

    watched.end_iteration()
    for _ in range(3):
        iterate()
    gpu.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        iterate()
        gpu.cuda.synchronize()
    timeline, _ = iterate()  # tells of the one before
    real = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == DeviceType.CUDA and "spin" in event.name
    )
    assert len(real) == LAYERS, f"the profiler saw {len(real)} of {LAYERS} collectives"
    gaps_ns = [round((after[0] - one[1]) * 1e3) for one, after in pairwise(real)]
    busy_ns = round(sum(end - begin for begin, end in real) * 1e3)
    return list(timeline.spans_ns[1:LAYERS]), gaps_ns, busy_ns


def _on_fake() -> tuple[list[int], list[int], int]:
    cuda = FakeCuda()
    cuda.set_device(cuda.device)
    with cuda.installed():
        nccl: Any = FakeNccl(cuda, round(COLLECTIVE_S * 1e9))
        clock = CudaClock(cuda.device, lambda: cuda.now_ns)
        watched = StreamSpans(Gate(), clock, lambda: cuda.now_ns)
        watched.install(nccl)
        piece = cuda.empty(512)

        def iterate() -> Any:
            nccl.busy_ns.clear()
            for _ in range(LAYERS):
                work = nccl.all_gather_into_tensor(piece, piece, async_op=True)
                work.wait()
                cuda.launch("a layer", writes=[piece], takes_ns=5 * _MS)
            watched.before_update()
            return watched.end_iteration()

        watched.end_iteration()
        for _ in range(4):
            iterate()
        real = list(nccl.busy_ns)
        timeline, _ = iterate()
    gaps_ns = [after[0] - one[1] for one, after in pairwise(real)]
    return list(timeline.spans_ns[1:LAYERS]), gaps_ns, sum(end - begin for begin, end in real)
