"""A GPU: a copy stream into shared memory that is pinned; and NCCL out of its memory, where asked.

Everything but what is said to the GPU is `castor_runtime.trainer.captured_device`, and
`castor_runtime.trainer.staged_device` with NCCL. Times come from events, which the GPU itself sets.

What makes it safe beside training, stream by stream (tests/runtime/test_cuda_streams.py checks it):

- State is read after an event that the thread that trains records at the moment itself, on the
  stream that it uses then, and that has waited for the streams its updates were queued on.
- Sub-buffers are of the exchange stream's own pool. The allocator gives what training frees back to
  training's stream at once, while kernels still read it: from that pool a sub-buffer would be
  written before they are done. One is given back, to be used or freed, when this process has waited
  for all that was queued with it, or when the exchange stream has.
- A round is queued as a whole, copies to CPU memory too, and who posts it waits for nothing. The
  exchange stream does one round after the other, each after the collective that it was posted
  behind (`castor_runtime.trainer.launches`), so that a host that is ahead sends nothing early.
- Each thread sets its device first: one that does not makes a context on GPU 0, for each rank.
- Who waits for an event sleeps: a thread that spins would take a core from training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise, starmap
from typing import Any

import torch
import torch.distributed as dist

from castor_policy.chunk_schedule import Link
from castor_runtime.trainer.captured_device import CapturedDevice
from castor_runtime.trainer.copy_engine import Span
from castor_runtime.trainer.device import Post
from castor_runtime.trainer.idle_spans import Gate
from castor_runtime.trainer.pinning import HostPins
from castor_runtime.trainer.staged_device import Crossing, StagedDevice
from castor_runtime.trainer.staging import Copy, copy_all

_PROBE_BYTES = (1 << 20, 32 << 20)
_PROBE_REPETITIONS = 5

_cuda: Any = torch.cuda  # which has no types for some of its names


class CudaDevice(StagedDevice):
    """NCCL on a stream of its own, and copies on another.

    Args:
        group: NCCL's, for nothing but checkpoints.
        device: of this rank.
        gate: knows when training communicates.
        sub_buffer_bytes: R/p, the size of the pieces in which the own replica is copied.
    """

    def __init__(
        self, group: dist.ProcessGroup, device: torch.device, gate: Gate, sub_buffer_bytes: int
    ) -> None:
        super().__init__(_CudaAccelerator(group, device), gate, sub_buffer_bytes)


class CudaCapture(CapturedDevice):
    """A copy stream, and what is sent from CPU memory.

    Args:
        post: by which pieces in CPU memory travel.
        device: of this rank.
        piece_bytes: in which the own replica is copied.
    """

    def __init__(self, post: Post, device: torch.device, piece_bytes: int) -> None:
        super().__init__(_CudaCopies(device), post, piece_bytes)


class _CudaCopies:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = _cuda.Stream(device)
        self._looks = _cuda.Stream(device)
        self._follow = [self._copies, self._looks]
        """Streams that come after what training has asked for at a moment."""
        self._updates: Any = None
        """The stream on which the state was changed last."""
        self._pins = HostPins(_cuda.cudart, self.enter_thread)

    def enter_thread(self) -> None:
        torch.cuda.set_device(self._device)

    def note_update(self) -> None:
        self._updates = torch.cuda.current_stream(self._device)

    @contextmanager
    def moment(self) -> Iterator[None]:
        training = torch.cuda.current_stream(self._device)
        if self._updates is not None:
            training.wait_stream(self._updates)
        yield
        for stream in self._follow:
            stream.wait_stream(training)

    def pin(self, memory: torch.Tensor) -> None:
        self._pins.pin(memory)

    def unpin(self) -> None:
        self._pins.unpin()

    def preparing(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._copies)

    def aside(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._looks)

    def begin(self, copies: Sequence[Copy]) -> Callable[[], Span]:
        with torch.cuda.stream(self._copies):
            began = _event(self._copies)
            copy_all(self._pins.split(copies))
            ended = _event(self._copies)
        return lambda: _span(began, ended)


class _CudaAccelerator(_CudaCopies):
    launches_in_order = True

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        super().__init__(device)
        self._group = group
        self._exchanges = _cuda.Stream(device)
        self._landings = _cuda.Stream(device)
        self._joins = _cuda.Stream(device)
        self._follow.append(self._exchanges)
        self._copy_link = measure_copy_link(device)

    @property
    def copy_link(self) -> Link | None:
        return self._copy_link

    @contextmanager
    def preparing(self) -> Iterator[None]:
        with torch.cuda.stream(self._exchanges):
            yield
        self._copies.wait_stream(self._exchanges)

    def allocate(self, size_bytes: int) -> torch.Tensor:
        with torch.cuda.stream(self._exchanges):
            return torch.empty(size_bytes, dtype=torch.uint8, device=self._device)

    def exchange(
        self,
        number: int,
        gathers: Sequence[Copy],
        outgoing: Sequence[tuple[int, torch.Tensor]],
        incoming: Sequence[tuple[int, torch.Tensor]],
        landings: Sequence[Copy],
    ) -> Crossing:
        with torch.cuda.stream(self._exchanges):
            copy_all(gathers)
            began = _event(self._exchanges)
            for work in post_nccl(self._group, number, outgoing, incoming):
                work.wait()
            arrived = _event(self._exchanges)
        with torch.cuda.stream(self._landings):
            self._landings.wait_event(arrived)
            landed = [_event(self._landings)]
            for landing in landings:
                copy_all(self._pins.split([landing]))
                landed.append(_event(self._landings))
        return Crossing(
            lambda: _span(began, arrived),
            lambda: list(starmap(_span, pairwise(landed))),
            lambda _wait: self._exchanges.wait_event(landed[-1]),
        )

    def follow_training(self, work: Any) -> None:
        training = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._joins):
            self._joins.wait_stream(training)
            if work is not None and hasattr(work, "get_future"):
                # Not work.wait(): that lets go of tensors which are training's to wait for first.
                work.get_future().wait()
        self._exchanges.wait_stream(self._joins)


def post_nccl(
    group: dist.ProcessGroup,
    tag: int,
    outgoing: Sequence[tuple[int, torch.Tensor]],
    incoming: Sequence[tuple[int, torch.Tensor]],
) -> list[Any]:
    """Start sends and receives over a group of NCCL's: a `Post`, once the group is given."""
    del tag  # NCCL has none: rounds are told apart by their order, the same on all ranks
    operations = [dist.P2POp(dist.irecv, to, rank, group) for rank, to in incoming]
    operations += [dist.P2POp(dist.isend, what, rank, group) for rank, what in outgoing]
    return list(dist.batch_isend_irecv(operations)) if operations else []


def measure_copy_link(device: torch.device) -> Link:
    """Time copies of two sizes to pinned memory; return the line through the fastest of each.

    Source: Gemini sec. 5.3, f(s) = alpha + s/B.
    """
    stream = _cuda.Stream(device)
    seconds: list[float] = []
    for size_bytes in _PROBE_BYTES:
        source = torch.zeros(size_bytes, dtype=torch.uint8, device=device)
        target = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)
        stream.wait_stream(torch.cuda.current_stream(device))
        times: list[float] = []
        with torch.cuda.stream(stream):
            for _ in range(_PROBE_REPETITIONS):
                began = _event(stream)
                target.copy_(source, non_blocking=True)
                began_ns, ended_ns = _span(began, _event(stream))
                times.append((ended_ns - began_ns) / 1e9)
        seconds.append(min(times))
    small, large = _PROBE_BYTES
    per_byte_s = max((seconds[1] - seconds[0]) / (large - small), 1e-15)
    alpha_s = max(0.0, seconds[0] - small * per_byte_s)
    return Link(round(alpha_s * 1e9), round(8 / per_byte_s))


def _event(stream: Any) -> Any:
    event = _cuda.Event(enable_timing=True, blocking=True)
    event.record(stream)
    return event


def _span(began: Any, ended: Any) -> Span:
    """Wait for `ended`; return when both were set, by the CPU's clock."""
    ended.synchronize()
    now_ns = time.monotonic_ns()
    return now_ns - round(began.elapsed_time(ended) * 1e6), now_ns
