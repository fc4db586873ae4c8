"""The fake GPU itself, and how it is put in torch's place."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch

from castor_lab.fake_cuda.happens_before import Clock, Fault, Use, Uses
from castor_lab.fake_cuda.memory import Memory
from castor_lab.fake_cuda.streams import Event, Stream
from castor_lab.fake_cuda.tensors import Tensor, extent, watched
from castor_lab.fake_cuda.threads import TRACKED, thread_clock, thread_name

_KERNEL_NS = 1000
_LAUNCH_NS = 100
_BYTES_PER_NS = 20


class FakeCuda:
    """One GPU of a machine, as the threads of one process use it.

    Args:
        index: of the GPU; not 0, so that a thread that says nothing is on another one.

    Attributes:
        device: it.
        default: its default stream.
        memory: its memory.
        now_ns: the time that the host's threads have come to; counted, not measured.
        host_waits_by: how often each thread has waited for the GPU.
        lock: held while something is queued.
    """

    def __init__(self, index: int = 1) -> None:
        self.device = torch.device("cuda", index)
        self.lock = threading.RLock()
        self.memory = Memory(self)
        self.now_ns = 0
        self.host_waits_by: dict[str, int] = {}
        self._uses = Uses()
        self._streams = 0
        self._here = threading.local()
        self.default = Stream(self, "the default stream")

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What was found so far."""
        return tuple(self._uses.faults)

    # ---- what training does ---------------------------------------------------------------------

    def launch(
        self,
        what: str,
        *,
        reads: Sequence[torch.Tensor] = (),
        writes: Sequence[torch.Tensor] = (),
        stream: Stream | None = None,
        takes_ns: int | None = None,
    ) -> None:
        """Queue a kernel that uses these tensors; the host goes on.

        `takes_ns` None: as long as a kernel's start and what it writes take.
        """
        self.touch(what)
        with self.lock:
            on = self.current_stream() if stream is None else stream
            self.now_ns += _LAUNCH_NS
            on.clock.join(thread_clock())
            written_ns = sum(map(_size_bytes, writes)) // _BYTES_PER_NS
            lasts_ns = _KERNEL_NS + written_ns if takes_ns is None else takes_ns
            on.free_ns = max(on.free_ns, self.now_ns) + lasts_ns
            self._note(what, on.name, on.clock, reads, writes)

    def host_uses(
        self,
        what: str,
        *,
        reads: Sequence[torch.Tensor] = (),
        writes: Sequence[torch.Tensor] = (),
    ) -> None:
        """Have the calling thread use memory of the processor."""
        with self.lock:
            self._note(what, thread_name(), thread_clock(), reads, writes)

    def host_waits(self, until_ns: int, clock: Clock, *, spins: bool) -> None:
        """Have the calling thread wait for the GPU."""
        name = thread_name()
        with self.lock:
            if until_ns > self.now_ns:
                self.host_waits_by[name] = self.host_waits_by.get(name, 0) + 1
                if spins and threading.current_thread() is not threading.main_thread():
                    self._uses.fault(f"{name} spins while it waits for the GPU")
            self.now_ns = max(self.now_ns, until_ns)
            thread_clock().join(clock)

    def host_works(self, for_ns: int) -> None:
        """Have the host do something else for a while."""
        with self.lock:
            self.now_ns += for_ns

    def host_memory(self, size_bytes: int) -> torch.Tensor:
        """Return memory of the processor whose uses are watched, zeros."""
        return watched(self, torch.zeros(size_bytes, dtype=torch.uint8))

    def tensor(self, values: torch.Tensor) -> torch.Tensor:
        """Return a tensor on the GPU, written on the current stream."""
        made = self._empty(values.shape, values.dtype)
        made.copy_(values, non_blocking=True)
        return made

    def empty(self, size_bytes: int) -> torch.Tensor:
        """Return memory of the GPU, flat, uint8, of the current stream's pool."""
        return self._empty(torch.Size([size_bytes]), torch.uint8)

    def new_stream(self, name: str = "") -> Stream:
        """Return another stream."""
        self.touch("a new stream")
        with self.lock:
            self._streams += 1
            return Stream(self, name or f"stream {self._streams}")

    # ---- what stands in torch.cuda --------------------------------------------------------------

    def set_device(self, device: torch.device) -> None:
        """See `torch.cuda.set_device`."""
        self._here.device = device

    def current_stream(self, _device: Any = None) -> Stream:
        """See `torch.cuda.current_stream`."""
        stream: Stream = getattr(self._here, "stream", self.default)
        return stream

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        """See `torch.cuda.stream`."""
        self.touch("a choice of a stream")
        before = self.current_stream()
        self._here.stream = stream
        try:
            yield
        finally:
            self._here.stream = before

    def touch(self, what: str) -> None:
        """Note what a thread does that has not said which GPU is its own."""
        if getattr(self._here, "device", None) != self.device:
            self._uses.fault(f"{thread_name()} does not set its device before {what}")

    def synchronize(self, _device: Any = None) -> None:
        """See `torch.cuda.synchronize`; of the streams, those of the calling thread."""
        self.default.synchronize()
        self.current_stream().synchronize()

    @contextmanager
    def installed(self, *modules: ModuleType) -> Iterator[None]:
        """Be torch's GPU inside the `with`; the modules' threads and locks are watched."""
        empty = torch.empty

        def fake_empty(*size: Any, **named: Any) -> torch.Tensor:
            named.pop("pin_memory", None)
            if torch.device(named.get("device") or "cpu").type != "cuda":
                return empty(*size, **named)
            flat = size[0] if isinstance(size[0], tuple | list) else size
            return self._empty(torch.Size(flat), named.get("dtype") or torch.float32)

        def fake_zeros(*size: Any, **named: Any) -> torch.Tensor:
            return fake_empty(*size, **named).zero_()

        def event(*, enable_timing: bool = False, blocking: bool = False) -> Event:
            return Event(self, enable_timing=enable_timing, blocking=blocking)

        stands: Any = {
            "Stream": lambda _device=None: self.new_stream(),
            "Event": event,
            "stream": self.stream,
            "current_stream": self.current_stream,
            "default_stream": lambda _device=None: self.default,
            "set_device": self.set_device,
            "is_current_stream_capturing": lambda: False,
            "synchronize": self.synchronize,
            "cudart": lambda: SimpleNamespace(
                cudaHostRegister=lambda *_: 0, cudaHostUnregister=lambda *_: 0
            ),
        }
        with (
            mock.patch.multiple(torch.cuda, **stands),
            mock.patch.object(torch, "empty", fake_empty),
            mock.patch.object(torch, "zeros", fake_zeros),
        ):
            patches = [mock.patch.object(module, "threading", TRACKED) for module in modules]
            for patch in patches:
                patch.start()
            try:
                yield
            finally:
                for patch in patches:
                    patch.stop()

    def _empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        self.touch("an allocation")
        size_bytes = shape.numel() * dtype.itemsize
        return watched(self, self.memory.allocate(size_bytes).view(dtype).view(shape))

    def _note(
        self,
        what: str,
        actor: str,
        clock: Clock,
        reads: Sequence[torch.Tensor],
        writes: Sequence[torch.Tensor],
    ) -> None:
        number = clock.tick(actor)
        for tensors, changed in ((reads, False), (writes, True)):
            for tensor in tensors:
                low, high = extent(tensor)
                self._uses.add(Use(what, actor, number, low, high, changed), clock)


def _size_bytes(tensor: torch.Tensor) -> int:
    low, high = extent(tensor)
    return high - low
