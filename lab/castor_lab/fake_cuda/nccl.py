"""What stands for NCCL: a stream of its own, and handles whose wait returns at once.

`FakeNccl` is put in the place of `torch.distributed` in the module under test; what a rank sends
to itself it receives. Its collectives are DeepSpeed's: an object with their methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from castor_lab.fake_cuda.cuda import FakeCuda
from castor_lab.fake_cuda.streams import Event, Stream


class Work:
    """A handle such as NCCL's: `wait` makes the current stream wait, and returns at once."""

    def __init__(self, cuda: FakeCuda, done: Event) -> None:
        self._cuda = cuda
        self._done = done

    def wait(self, *_timeout: Any) -> bool:
        """Have what is queued next on the current stream wait for it."""
        self._cuda.current_stream().wait_event(self._done)
        return True

    def get_future(self) -> Work:
        """Return what has such a `wait` too, as a future of NCCL's does."""
        return self


class FakeNccl:
    """One rank's communicator.

    Args:
        cuda: its GPU.
        takes_ns: what a collective takes on the network.
    """

    ProcessGroup = object
    isend = "isend"
    irecv = "irecv"

    def __init__(self, cuda: FakeCuda, takes_ns: int = 1000) -> None:
        self._cuda = cuda
        self._takes_ns = takes_ns
        self._stream: Stream = cuda.new_stream("NCCL's stream")
        self.busy_ns: list[tuple[int, int]] = []

    def P2POp(self, op: str, tensor: torch.Tensor, peer: int, _group: Any) -> Any:  # noqa: N802 - torch's name
        """See `torch.distributed.P2POp`."""
        return op, tensor, peer

    def batch_isend_irecv(self, operations: Sequence[Any]) -> list[Work]:
        """Start sends and receives; the k-th send is received by the k-th receive."""
        received = [tensor for op, tensor, _ in operations if op == self.irecv]
        sent = [tensor for op, tensor, _ in operations if op == self.isend]
        done = self._queue("NCCL's sends and receives", sent, received)
        with torch._C.DisableTorchFunctionSubclass():
            for source, target in zip(sent, received, strict=True):
                target.copy_(source)
        return [Work(self._cuda, done)]

    def all_gather_into_tensor(
        self, output: torch.Tensor, given: torch.Tensor, *, async_op: bool = False
    ) -> Work | None:
        """Gather; without `async_op` too the host goes on at once, and its stream waits."""
        work = Work(self._cuda, self._queue("an all-gather", [given], [output]))
        if async_op:
            return work
        work.wait()
        return None

    def _queue(
        self, what: str, reads: Sequence[torch.Tensor], writes: Sequence[torch.Tensor]
    ) -> Event:
        self._stream.wait_stream(self._cuda.current_stream())
        began_ns = max(self._stream.free_ns, self._cuda.now_ns)
        self._cuda.launch(
            what, reads=reads, writes=writes, stream=self._stream, takes_ns=self._takes_ns
        )
        self.busy_ns.append((began_ns, self._stream.free_ns))
        return self._stream.record_event()
