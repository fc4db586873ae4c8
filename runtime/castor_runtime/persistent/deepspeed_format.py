"""DeepSpeed's ZeRO-3 files, written from a snapshot of checkpoint memory, and loaded again.

What is written is what DeepSpeed 0.19.8's `save_checkpoint` writes, so that plain DeepSpeed loads
it with `engine.load_checkpoint` and converts it with `zero_to_fp32.py`; only `zero_stage` is a
plain 3 where DeepSpeed pickles an enumeration of its own, which torch's default `weights_only`
refuses (DeepSpeed#8500). The loss scaler has to stay the object that DeepSpeed expects:
`load_rank` names it as safe, so that an engine whose `checkpoint_engine` loads with
`weights_only` resumes too.
"""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler

from castor_runtime.pacing import Pacer
from castor_runtime.persistent.durable_files import FileRecord
from castor_runtime.persistent.manifest import (
    Attempt,
    Receipt,
    read_receipt,
    write_receipt,
)
from castor_runtime.persistent.storage import CONVERTERS
from castor_runtime.persistent.template import read_template
from castor_runtime.persistent.tier import Tier
from castor_runtime.state.meta import decode
from castor_runtime.state.module_buffers import departed_names, held_names
from castor_runtime.state.protocol import DamagedError

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype)
}
_OF_THE_MODULE = ("buffer/", "frozen/")  # all other sections are "<optimizer's key>/<sub-group>"


@dataclass(frozen=True, slots=True)
class LoadedRank:
    """What `load_rank` leaves to its caller.

    Attributes:
        meta: the snapshot's meta, as the trainer encoded it.
        extra: sections that DeepSpeed's format has no place for, by name.
    """

    meta: bytes
    extra: dict[str, torch.Tensor]


def meta_name(rank: int) -> str:
    """Name of the file that holds a rank's meta, as it lay in checkpoint memory."""
    return f"castor_rank_{rank}_meta.bin"


def extra_name(rank: int) -> str:
    """Name of the file that holds a rank's sections without a place in DeepSpeed's format."""
    return f"castor_rank_{rank}_extra.pt"


def section_tensors(
    data: memoryview, sections: Sequence[Mapping[str, Any]]
) -> dict[str, torch.Tensor]:
    """Return a tensor over each section of a snapshot, without a copy.

    The tensors must not be written: they are the snapshot's memory.

    Args:
        data: the snapshot's data region.
        sections: name, offset in bytes, dtype ("float32") and shape of each.

    Raises:
        ValueError: a section lies outside the data, or its dtype is unknown.
    """
    tensors = {}
    for section in sections:
        name, offset, shape = section["name"], int(section["offset"]), list(section["shape"])
        dtype = _DTYPES.get(section["dtype"])
        if dtype is None:
            raise ValueError(f"section {name} has the unknown dtype {section['dtype']!r}")
        count = math.prod(shape)
        if offset < 0 or offset + count * dtype.itemsize > data.nbytes:
            raise ValueError(f"section {name} ends outside the {data.nbytes} B of its snapshot")
        if count == 0:
            tensors[name] = torch.empty(shape, dtype=dtype)
            continue
        with warnings.catch_warnings():
            # A snapshot may be read-only memory, of which torch warns; nothing here writes to it.
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            flat = torch.frombuffer(data, dtype=dtype, count=count, offset=offset)
        tensors[name] = flat.view(shape)
    return tensors


def write_rank_files(
    template_path: Path,
    data: memoryview,
    sections: Sequence[Mapping[str, Any]],
    meta_bytes: bytes,
    tier: Tier,
    staging: str,
    attempt: Attempt,
    rank: int,
    *,
    pacer: Pacer | None = None,
) -> Receipt:
    """Write a rank's files and then its receipt into the attempt's folder.

    A rank whose receipt is already there is left as it is: a process that takes over after a crash
    calls this again for all its ranks.

    Args:
        template_path: what `write_template` wrote in that rank's trainer.
        data: the rank's snapshot; it must not change meanwhile (see `memory_copy`).
        sections: what lies where in it.
        meta_bytes: kept as they are for the trainer that resumes; decoded, "buffers", "engine",
            "lr_scheduler", "loss_scaler", "dynamic_loss_scale", "overflow" and "optimizer" are
            read, which are as `DeepSpeedState.meta` returns them.
        tier: where they are written.
        staging: from `storage.start_attempt`.
        attempt: what is written.
        rank: whose files.
        pacer: holds the writing to a bandwidth.

    Raises:
        ValueError: template, sections and meta do not belong together.
        OSError: the storage refuses.
    """
    existing = read_receipt(tier, staging, rank)
    if existing is not None and existing.attempt == attempt:
        return existing
    template = read_template(template_path)
    if template["rank"] != rank or template["model_states"]["dp_world_size"] != attempt.world_size:
        raise ValueError(
            f"{template_path} is the template of rank {template['rank']} of "
            f"{template['model_states']['dp_world_size']}, expected {rank} of {attempt.world_size}"
        )
    meta = decode(meta_bytes)
    if meta["engine"]["global_steps"] != attempt.iteration:
        raise ValueError(
            f"the snapshot of rank {rank} is of iteration {meta['engine']['global_steps']}, "
            f"expected {attempt.iteration}"
        )
    tensors = section_tensors(data, sections)
    model_states = _model_states(template, tensors, meta)
    optimizer_states = _optimizer_states(template, tensors, meta)
    files = [
        _save(tier, staging, template["model_file"], model_states, pacer),
        _save(tier, staging, template["optimizer_file"], optimizer_states, pacer),
    ]
    if tensors:  # those that found no place above
        files.append(_save(tier, staging, extra_name(rank), tensors, pacer))
    with tier.writing(f"{staging}/{meta_name(rank)}", pacer) as file:
        file.write(meta_bytes)
    files.append(file.record(meta_name(rank)))
    receipt = Receipt(attempt, rank, tuple(files))
    write_receipt(tier, staging, receipt)
    return receipt


def write_converters(tier: Tier) -> None:
    """Put DeepSpeed's own conversion scripts into the folder, as `save_checkpoint` does."""
    scripts = Path(deepspeed.__file__).parent / "utils"
    there = tier.files("")
    for name in CONVERTERS:
        if name not in there:
            tier.write(name, (scripts / name).read_bytes(), executable=True)


def load_rank(
    engine: Any,
    folder: Path,
    rank: int,
    *,
    prepare: Callable[[bytes], None] = lambda _: None,
) -> LoadedRank:
    """Load this rank's state from a persistent checkpoint through `engine.load_checkpoint`.

    Collective: every rank of the engine calls it.

    Args:
        engine: fresh from `deepspeed.initialize`.
        folder: of the checkpoint, with this rank's files, known to be whole (`reading`).
        rank: of this process.
        prepare: called with the snapshot's meta once the files are known to be whole, before
            DeepSpeed loads them: buffers that training has made or changed must be there.

    Returns:
        What DeepSpeed does not restore.

    Raises:
        DamagedError: DeepSpeed finds none there.
    """
    meta = (folder / meta_name(rank)).read_bytes()
    prepare(meta)
    with torch.serialization.safe_globals([LossScaler, DynamicLossScaler]):
        loaded, _ = engine.load_checkpoint(str(folder.parent), tag=folder.name)
    if loaded is None:
        raise DamagedError(f"DeepSpeed found no checkpoint in {folder}")
    extra = folder / extra_name(rank)
    tensors: dict[str, torch.Tensor] = {}
    if extra.exists():
        tensors = torch.load(extra, map_location="cpu", weights_only=True)
    return LoadedRank(meta, tensors)


def _model_states(
    template: Mapping[str, Any], tensors: dict[str, torch.Tensor], meta: Mapping[str, Any]
) -> dict[str, Any]:
    """Build the content of a model_states file; takes the tensors that it uses."""
    fixed = template["model_states"]
    module = template["module"]
    aliases = template["buffer_aliases"]
    buffers = {name: _taken(tensors, f"buffer/{name}") for name in sorted(set(aliases.values()))}
    departures = meta.get("buffers", {})
    departed = departed_names(departures)
    held = {name: value for name, saved, value in held_names(departures) if saved}
    for key, name in aliases.items():
        if departed.isdisjoint((key, name)):
            module[key] = buffers[name]
        elif name in held:  # of a module that has two names
            module[key] = held[name]
        else:
            del module[key]
    module.update(held)
    for name in departed:  # its section says nothing
        tensors.pop(f"buffer/{name}", None)
    for key, name in template["extra_state"].items():
        module[key] = meta["extra_state"][name]
    fragments: OrderedDict[str, torch.Tensor] = OrderedDict()
    for name, shape in fixed["frozen_param_shapes"].items():
        if shape.numel() == 0 and f"frozen/{name}" not in tensors:
            fragments[name] = torch.empty(0, dtype=template["frozen_dtypes"][name])
        else:
            fragments[name] = _taken(tensors, f"frozen/{name}")
    counters = {
        name: meta["engine"][name] for name in ("skipped_steps", "global_steps", "global_samples")
    }
    return {
        "module": module,
        **fixed,
        "buffer_names": [name for name in fixed["buffer_names"] if name not in departed] + [*held],
        "frozen_param_fragments": fragments,
        "lr_scheduler": meta["lr_scheduler"],
        **counters,
    }


def _optimizer_states(
    template: Mapping[str, Any], tensors: dict[str, torch.Tensor], meta: Mapping[str, Any]
) -> dict[str, Any]:
    """Build the content of an optim_states file; takes the tensors that it uses."""
    group_of = template["group_of_sub_group"]
    groups = meta["optimizer"]["param_groups"]
    # torch numbers parameters through all groups; a sub-group is one parameter of its group.
    order = sorted(range(len(group_of)), key=lambda index: (group_of[index], index))
    number = {sub_group: position for position, sub_group in enumerate(order)}
    param_groups = [
        {**group, "params": sorted(number[i] for i, owner in enumerate(group_of) if owner == g)}
        for g, group in enumerate(groups)
    ]
    if set(group_of) - set(range(len(groups))):
        raise ValueError(f"the snapshot has {len(groups)} parameter groups, the template more")
    small = meta["optimizer"]["state"]
    state: dict[int, dict[str, Any]] = {}
    master = [_taken(tensors, f"fp32/{index}") for index in range(len(group_of))]
    for index in order:
        entries = small.get(index, small.get(str(index)))
        long = {
            name.partition("/")[0]: tensors.pop(name)
            for name in sorted(tensors)
            if name.partition("/")[2] == str(index) and not name.startswith(_OF_THE_MODULE)
        }
        if entries is not None:  # None: no update has made any state yet, and `long` is zeros
            without = {*entries, *meta["optimizer"].get("absent", {}).get(index, ())}
            there = {key: value for key, value in long.items() if key not in without}
            state[number[index]] = {**entries, **there}
    return {
        "optimizer_state_dict": {
            "zero_stage": 3,
            "loss_scaler": _loss_scaler(template["loss_scaler"], meta["loss_scaler"]),
            "dynamic_loss_scale": meta["dynamic_loss_scale"],
            "overflow": meta["overflow"],
            "partition_count": template["partition_count"],
            "optimizer_state_dict": {"state": state, "param_groups": param_groups},
            "fp32_flat_groups": master,
        },
        "ds_config": template["model_states"]["ds_config"],
        "ds_version": template["model_states"]["ds_version"],
    }


def _loss_scaler(template: Mapping[str, Any], current: Mapping[str, Any]) -> Any:
    """Return DeepSpeed's loss scaler as it was; built without `__init__`, as unpickling does."""
    classes = {cls.__name__: cls for cls in (LossScaler, DynamicLossScaler)}
    if template["class"] not in classes:
        raise ValueError(f"the persistent tier does not know the loss scaler {template['class']}")
    cls = classes[template["class"]]
    scaler = cls.__new__(cls)
    vars(scaler).update({**template["attributes"], **current})
    return scaler


def _taken(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    try:
        return tensors.pop(name)
    except KeyError:
        raise ValueError(
            f"the snapshot has no section {name!r}, which the template needs; it has "
            f"{', '.join(sorted(tensors)) or 'none'} left"
        ) from None


def _save(tier: Tier, folder: str, name: str, content: Any, pacer: Pacer | None) -> FileRecord:
    with tier.writing(f"{folder}/{name}", pacer) as file:
        torch.save(content, file)  # type: ignore[arg-type]  # it only calls write and flush
    return file.record(name)
