"""torch.distributed.checkpoint's async_save, by a thread or a process, into a folder in memory."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import Future
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from workload import Options, Restarted, train


class Dcp(Restarted):
    """Keeps the newest two; one stager for all, without which each save allocates anew."""

    def __init__(self, state: dict[str, torch.Tensor], asked: Options) -> None:
        rank = dist.get_rank()
        self._state = {f"rank{rank}/{name}": tensor for name, tensor in state.items()}
        self._tier = asked.tier
        self._group = dist.new_group(backend="gloo")
        in_process = os.environ["BENCH_DCP"] == "process"
        self._type = AsyncCheckpointerType.PROCESS if in_process else AsyncCheckpointerType.THREAD
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=False,
                use_shared_memory=in_process,
                use_async_staging=False,
                use_non_blocking_copy=False,
            )
        )
        self._saving: Future[None] | None = None

    def recover(self) -> int:
        return self._load() or 0

    def save(self, iteration: int) -> None:
        saving = dcp.async_save(
            self._state,
            checkpoint_id=self._folder(iteration),
            process_group=self._group,
            async_checkpointer_type=self._type,
            async_stager=self._stager,
        )
        assert isinstance(saving, Future)
        self._saving = saving

    def wait_usable(self, iteration: int) -> None:
        assert self._saving is not None
        self._saving.result()
        dist.barrier(self._group)
        if dist.get_rank() == 0:
            latest = self._tier / "latest.new"
            latest.write_text(str(iteration))
            latest.rename(self._tier / "latest")
            shutil.rmtree(self._folder(iteration - 2), ignore_errors=True)

    def restore(self) -> int | None:
        return self._load()

    def fetch(self) -> None:
        return None

    def close(self) -> None:
        self._stager.close()

    def _load(self) -> int | None:
        latest = self._tier / "latest"
        if not latest.exists():
            return None
        iteration = int(latest.read_text())
        dcp.load(self._state, checkpoint_id=self._folder(iteration), process_group=self._group)
        return iteration

    def _folder(self, iteration: int) -> Path:
        return self._tier / f"iteration-{iteration}"


if __name__ == "__main__":
    train(Dcp)
