"""DeepSpeed's own save_checkpoint of ZeRO-3, into a folder in memory; it writes while it blocks."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch
import torch.distributed as dist
from workload import TENSORS, Options, Restarted, train

# It would need a C++ compiler at the first start. (`deepspeed.comm.torch` is torch itself by now.)
sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]


class _Model(torch.nn.Module):
    """Nothing but parameters."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList(
            [torch.nn.Parameter(torch.zeros(numel)) for _ in range(TENSORS)]
        )


_ENGINE: list[Any] = []


def engine_state(state_bytes: int) -> dict[str, torch.Tensor]:
    """Build an engine; return this rank's fp32 partition and Adam moments, `state_bytes` in all."""
    world = dist.get_world_size()
    numel = state_bytes * world // (3 * 4) // TENSORS // world * world
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 3},
    }
    model = _Model(numel)
    optimizer = torch.optim.Adam(model.parameters())
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    for group in engine.optimizer.fp32_partitioned_groups_flat:  # as its first update would
        engine.optimizer.optimizer.state[group] = {
            "step": torch.ones(()),
            "exp_avg": torch.zeros_like(group),
            "exp_avg_sq": torch.zeros_like(group),
        }
    _ENGINE.append(engine)
    return _tensors(engine)


def _tensors(engine: Any) -> dict[str, torch.Tensor]:
    found = {}
    for g, group in enumerate(engine.optimizer.fp32_partitioned_groups_flat):
        moments = engine.optimizer.optimizer.state[group]
        found |= {f"master{g}": group.data}
        found |= {f"{name}{g}": moments[name] for name in ("exp_avg", "exp_avg_sq")}
    return found


class DeepSpeed(Restarted):
    """An engine whose optimizer states are the state that is updated, saved and checked."""

    def __init__(self, state: dict[str, torch.Tensor], asked: Options) -> None:
        self._state = state
        self._tier = asked.tier
        self._engine = _ENGINE[0]

    def recover(self) -> int:
        return self.restore() or 0

    def save(self, iteration: int) -> None:
        self._engine.save_checkpoint(
            str(self._tier), tag=f"iteration-{iteration}", client_state={"iteration": iteration}
        )

    def wait_usable(self, iteration: int) -> None:
        dist.barrier()
        if dist.get_rank() == 0:
            shutil.rmtree(self._tier / f"iteration-{iteration - 2}", ignore_errors=True)

    def restore(self) -> int | None:
        if not (self._tier / "latest").exists():
            return None
        _, client = self._engine.load_checkpoint(str(self._tier))
        self._state.update(_tensors(self._engine))
        return int(client["iteration"])

    def fetch(self) -> None:
        return None

    def close(self) -> None:
        """Nothing to do."""


if __name__ == "__main__":
    train(DeepSpeed, engine_state)
