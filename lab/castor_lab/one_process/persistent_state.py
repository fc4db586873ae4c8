"""Tensors that persistent storage can hold: as DeepSpeed's files, which the runtime writes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from castor_runtime.persistent.reading import whole_part
from castor_runtime.state.meta import decode
from castor_runtime.state.protocol import PersistentPart
from castor_runtime.state.sections import WholeSections
from castor_runtime.trainer.agent_link import TrainerSettings
from castor_runtime.trainer.tensor_state import TensorState

_READING = threading.Lock()
"""What `safe_globals` permits, it permits the whole process, and all ranks are threads here."""

_WEIGHT = "fp32/0"
"""The section of an engine's only sub-group; the momentum's is "momentum_buffer/0"."""


class PersistentTensorState(TensorState):
    """One tensor and its momentum, as if they were what ZeRO-3 has of a rank.

    Args:
        weight: the tensor.
        optimizer: SGD with momentum, of this tensor alone.
        settings: of the trainer.
    """

    def __init__(
        self, weight: torch.Tensor, optimizer: torch.optim.Optimizer, settings: TrainerSettings
    ) -> None:
        super().__init__({_WEIGHT: weight}, optimizer)
        self._weight = weight
        self._settings = settings

    def meta(self) -> dict[str, Any]:
        """Return what DeepSpeed has beside, as it is without any of it."""
        counters = {"global_steps": self.iteration(), "skipped_steps": 0, "global_samples": 0}
        return {
            **super().meta(),
            "engine": counters,
            "lr_scheduler": None,
            "loss_scaler": {},
            "dynamic_loss_scale": False,
            "overflow": False,
        }

    def write_template(self, path: Path) -> None:
        """Write a template that has no module."""
        from castor_runtime.persistent.template import TEMPLATE_VERSION  # noqa: PLC0415 - DeepSpeed

        rank = self._settings.rank
        template = {
            "castor_template_version": TEMPLATE_VERSION,
            "rank": rank,
            "model_file": f"model-{rank}.pt",
            "optimizer_file": _optimizer_file(rank),
            "module": OrderedDict(),
            "buffer_aliases": {},
            "extra_state": {},
            "model_states": {
                "buffer_names": [],
                "frozen_param_shapes": {},
                "dp_world_size": len(self._settings.replicas) * self._settings.ranks_per_machine,
                "ds_config": {},
                "ds_version": "",
            },
            "frozen_dtypes": {},
            "partition_count": 1,
            "loss_scaler": {"class": "LossScaler", "attributes": {}},
            "group_of_sub_group": [0],
        }
        torch.save(template, path)

    def restore_persistent(self, part: PersistentPart) -> dict[str, Any]:
        """Read this rank's files.

        Raises:
            DamagedError: they are not as they were written.
        """
        from deepspeed.runtime.fp16.loss_scaler import LossScaler  # noqa: PLC0415 - costs seconds

        from castor_runtime.persistent.deepspeed_format import meta_name  # noqa: PLC0415 - likewise

        with whole_part(part) as folder:
            meta = decode((folder / meta_name(part.rank)).read_bytes())
            file = folder / _optimizer_file(part.rank)
            with _READING, torch.serialization.safe_globals([LossScaler]):
                saved = torch.load(file, weights_only=True)["optimizer_state_dict"]
        (state,) = saved["optimizer_state_dict"]["state"].values()
        self._weight.detach().copy_(saved["fp32_flat_groups"][0])
        assert self._optimizer_state is not None, "it was given one"
        ((name, _, _),) = self._optimizer_state.tensors()
        held = WholeSections({name: state["momentum_buffer"]})
        self._optimizer_state.restore(meta["optimizer"], held)
        self._iteration = int(meta["iteration"])
        return meta


def _optimizer_file(rank: int) -> str:
    return f"optimizer-{rank}.pt"
