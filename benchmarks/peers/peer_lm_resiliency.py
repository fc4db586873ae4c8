"""lm-resiliency 0.2.0: its manager, 16 MiB chunks, one peer, flushing to a folder in memory."""

from __future__ import annotations

import socket
import time

import torch
import torch.distributed as dist
from lm_resiliency import InMemoryCkptConfig
from lm_resiliency.checkpointing.manager import InMemoryCheckpointManager, RecoveryMode
from lm_resiliency.checkpointing.transfer import TorchDistTransfer
from workload import Options, Restarted, train


class LmResiliency(Restarted):
    """All ranks see one folder, without which a restarted rank does not find its part."""

    def __init__(self, state: dict[str, torch.Tensor], asked: Options) -> None:
        self._tensors = [state[name] for name in sorted(state)]
        half = dist.get_world_size() // 2
        self._peer = (dist.get_rank() + half) % (2 * half)
        self._manager = InMemoryCheckpointManager(
            InMemoryCkptConfig(
                interval=1,
                replication_jump=half,
                disk_flush_interval=0,
                disk_folder=str(asked.tier),
                run_id="bench-peers",
                pin_memory=False,
                skip_replication_if_hsdp=False,
            )
        )
        self._transfer: TorchDistTransfer | None = None
        self._buffers: list[torch.Tensor] = []

    def recover(self) -> int:
        loaded = self._manager.load_tensors(RecoveryMode.LATEST_GEMINI)
        return 0 if loaded is None else self._copy(loaded[0], loaded[1])

    def save(self, iteration: int) -> None:
        self._manager.save_tensors(self._tensors, iteration)
        self._manager.maybe_wait()

    def wait_usable(self, iteration: int) -> None:
        if not self._manager.finalize_replication():
            raise RuntimeError(f"iteration {iteration} was not replicated")

    def restore(self) -> int | None:
        loaded = self._manager.load_tensors(RecoveryMode.LATEST_GEMINI)
        return 0 if loaded is None else self._copy(loaded[0], loaded[1])

    def fetch(self) -> float | None:
        """Pull over its portable transport, from a rank that serves what it holds."""
        rank, half = dist.get_rank(), dist.get_world_size() // 2
        if self._transfer is None:
            self._transfer = TorchDistTransfer(rank)
            self._buffers = [torch.zeros_like(tensor) for tensor in self._tensors]
        host = socket.gethostname()
        dist.barrier()
        began = time.monotonic()
        if rank < half:
            self._transfer.serve(self._tensors, f"part-{self._peer}", self._peer, host)
        else:
            self._transfer.fetch(self._buffers, f"part-{rank}", self._peer, host)
        return time.monotonic() - began

    def close(self) -> None:
        self._manager.close()

    def _copy(self, tensors: list[torch.Tensor], iteration: int) -> int:
        for live, tensor in zip(self._tensors, tensors, strict=True):
            live.copy_(tensor)
        return iteration


if __name__ == "__main__":
    train(LmResiliency)
