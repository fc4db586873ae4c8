"""What DeepSpeed's `save_checkpoint` writes beside the numbers, taken once from a live engine.

The process that writes the persistent tier has no engine. All that its files need and that does
not change with training (names, shapes, aliases, configuration) is put into a *template* by the
trainer; what changes comes out of checkpoint memory. Source: DeepSpeed 0.19.8,
`DeepSpeedEngine._common_checkpoint_state`, `_save_zero_checkpoint` and
`DeepSpeedZeroOptimizer_Stage3._rigid_state_dict`.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.engine import _checkpoint_parallel_metadata

from castor_runtime.persistent.durable_files import write_durably
from castor_runtime.state.extra_state import extra_state_modules
from castor_runtime.state.optimizer_attributes import has_own_state_dict, inner_optimizers

TEMPLATE_VERSION = 2
_EXTRA_STATE = "_extra_state"
"""torch's name for what `get_extra_state` returns, in a module's `state_dict`."""


def write_template(engine: Any, path: Path) -> None:
    """Write the template of this rank's files.

    Local and quick: no collective, no tensor's content. Call it in every trainer, each with a path
    of its own, after `deepspeed.initialize`.

    Raises:
        ValueError: the engine trains in a way that the persistent tier cannot write; says which.
    """
    _require_supported(engine)
    module, aliases, extra = _module_state(engine.module)
    optimizer = engine.optimizer
    frozen_shapes = engine._get_zero_frozen_param_attributes(engine._get_param_shape_func)
    placed = Path(engine._get_ckpt_name("", "")).name, Path(engine._get_zero_ckpt_name("", "")).name
    template = {
        "castor_template_version": TEMPLATE_VERSION,
        "rank": torch.distributed.get_rank(),
        "model_file": placed[0],
        "optimizer_file": placed[1],
        "module": module,
        "buffer_aliases": aliases,
        "extra_state": extra,
        "non_persistent_buffers": sorted(_buffer_names(engine.module) - set(aliases.values())),
        "model_states": {
            "buffer_names": engine._get_buffer_names(),
            "optimizer": None,
            "param_shapes": engine._get_zero_param_shapes(),
            "frozen_param_shapes": frozen_shapes,
            "shared_params": engine._get_shared_params(),
            "data_sampler": None,
            "random_ltd": None,
            "dp_world_size": engine.seq_dp_world_size,
            "mp_world_size": engine.mp_world_size,
            **_parallel_dimensions(engine),
            "ds_config": _configuration(engine),
            "ds_version": str(deepspeed.__version__),
        },
        "frozen_dtypes": engine._get_zero_frozen_param_attributes(
            lambda parameter: parameter.ds_tensor.dtype
        ),
        "partition_count": optimizer.partition_count,
        "loss_scaler": {
            "class": type(optimizer.loss_scaler).__name__,
            "attributes": dict(vars(optimizer.loss_scaler)),
        },
        "group_of_sub_group": [
            int(optimizer.sub_group_to_group_id[index])
            for index in range(len(optimizer.fp16_groups))
        ],
    }
    content = io.BytesIO()
    torch.save(template, content)
    write_durably(path, content.getvalue())


def read_template(path: Path) -> dict[str, Any]:
    """Read what `write_template` wrote; never runs code out of the file.

    Raises:
        ValueError: it is no template, or of another version of Castor.
    """
    template = torch.load(path, map_location="cpu", weights_only=True)
    found = template.get("castor_template_version") if isinstance(template, dict) else None
    if found != TEMPLATE_VERSION or not isinstance(template, dict):
        raise ValueError(f"{path} is a template of version {found}, expected {TEMPLATE_VERSION}")
    return template


def _require_supported(engine: Any) -> None:
    faults = {
        "ZeRO stage 3": engine.zero_optimization_stage() == 3,
        "an optimizer": engine.optimizer is not None,
        "no mixture of experts": not engine.has_moe_layers,
        "no tensor or pipeline parallelism": engine.mp_world_size == 1,
        "all ranks in one data-parallel group": (
            engine.seq_dp_world_size == torch.distributed.get_world_size()
        ),
        "no optimizer offload to NVMe": not engine.zero_nvme_offload_optimizer(),
        "no elastic ZeRO checkpoints": not engine.zero_elastic_checkpoint(),
        "an optimizer that wraps no other and has torch's own state_dict": not (
            has_own_state_dict(engine.optimizer.optimizer)
            or inner_optimizers(engine.optimizer.optimizer)
        ),
        "no curriculum learning": not engine.curriculum_learning_enabled(),
        "no random layer-token dropping": not engine.random_ltd_enabled(),
    }
    missing = [need for need, met in faults.items() if not met]
    if missing:
        raise ValueError(
            f"the persistent tier needs {'; '.join(missing)}: change DeepSpeed's configuration, "
            "or train without --persist"
        )


def _module_state(
    module: torch.nn.Module,
) -> tuple[OrderedDict[str, Any], dict[str, str], dict[str, str]]:
    """Return the module's state dict with empty tensors, and what stands behind some of its keys.

    That is the buffer of each buffer's key, and the module of each key of extra state. ZeRO-3 saves
    every parameter as an empty placeholder, so nothing of them is lost here.
    """
    found = module.state_dict(keep_vars=True)
    state: OrderedDict[str, Any] = OrderedDict(found)
    vars(state).update(vars(found))  # versions of the modules, which torch reads when it loads
    buffers = {id(tensor): name for name, tensor in module.named_buffers()}
    extra = _extra_state_keys(module)
    aliases = {}
    for key, value in found.items():
        if key in extra:
            state[key] = None
            continue
        if id(value) in buffers:
            aliases[key] = buffers[id(value)]
        elif not hasattr(value, "ds_id"):
            raise ValueError(f"parameter {key} is not partitioned by ZeRO-3, so it has no place")
        state[key] = torch.empty(0, dtype=value.dtype)
    return state, aliases, extra


def _extra_state_keys(module: torch.nn.Module) -> dict[str, str]:
    """Return for each key of extra state the name of its module; shared modules have several."""
    names = {id(part): name for name, part in extra_state_modules(module)}
    return {
        f"{name}.{_EXTRA_STATE}" if name else _EXTRA_STATE: names[id(part)]
        for name, part in module.named_modules(remove_duplicate=False)
        if id(part) in names
    }


def _buffer_names(module: torch.nn.Module) -> set[str]:
    return {name for name, _ in module.named_buffers()}


def _configuration(engine: Any) -> Any:
    # `engine.config` is what the user gave, a dictionary or a path; the template's reader takes
    # plain values only, and the file must not hang on a path of this machine.
    return engine._config._param_dict


def _parallel_dimensions(engine: Any) -> dict[str, Any]:
    dimensions: dict[str, Any] = _checkpoint_parallel_metadata(engine.mpu)
    return dimensions
