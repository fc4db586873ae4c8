"""DLRover 0.6.1's flash checkpoint into shared memory, under dlrover-run as its documents say."""

from __future__ import annotations

import torch
import torch.distributed as dist
from dlrover.trainer.torch.flash_checkpoint.checkpointer import StorageType
from dlrover.trainer.torch.flash_checkpoint.ddp import DdpCheckpointer
from workload import Options, Restarted, train


class DlRover(Restarted):
    """One shard a rank in the shared memory of its node's agent."""

    def __init__(self, state: dict[str, torch.Tensor], asked: Options) -> None:
        self._state = state
        world = dist.get_world_size()
        self._checkpointer = DdpCheckpointer(
            str(asked.tier), local_shard_num=world, global_shard_num=world
        )

    def recover(self) -> int:
        return self.restore() or 0

    def save(self, iteration: int) -> None:
        self._checkpointer.save_checkpoint(
            iteration,
            {"state": self._state, "iteration": iteration},
            storage_type=StorageType.MEMORY,
        )

    def wait_usable(self, iteration: int) -> None:
        """Nothing: it copies before it returns."""

    def restore(self) -> int | None:
        loaded = self._checkpointer.load_checkpoint()
        if not loaded:
            return None
        for name, tensor in self._state.items():
            tensor.copy_(loaded["state"][name])
        return int(loaded["iteration"])

    def fetch(self) -> None:
        return None

    def close(self) -> None:
        """Nothing to do."""


if __name__ == "__main__":
    train(DlRover)
