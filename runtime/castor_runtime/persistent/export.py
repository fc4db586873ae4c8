"""A persistent checkpoint taken out of its tier: as DeepSpeed has it, or as one file of weights.

Needs torch and DeepSpeed, and for weights as much memory as the whole model in float32.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import deepspeed
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from safetensors.torch import save_file

from castor_runtime.persistent.deepspeed_format import CONVERTERS
from castor_runtime.persistent.manifest import Manifest
from castor_runtime.persistent.storage import files_folder, tag
from castor_runtime.persistent.tier import Tier

WEIGHTS_NAME = "model.safetensors"


def deepspeed_names(iteration: int) -> tuple[str, ...]:
    """Return what `export_deepspeed` makes in its folder."""
    return (tag(iteration), "latest", *CONVERTERS)


def export_deepspeed(tier: Tier, manifest: Manifest, out: Path) -> None:
    """Write a folder that plain DeepSpeed loads: `engine.load_checkpoint(OUT)`.

    Args:
        tier: that has the checkpoint.
        manifest: of it.
        out: a folder that has none of `deepspeed_names`.

    Raises:
        FilesDamagedError: files are not as they were written; nothing was made.
        OSError: the storage refuses, or there is no room.
    """
    name = tag(manifest.attempt.iteration)
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".castor-export-", dir=out) as beside:
        whole = tier.whole(files_folder(tier, manifest.attempt), manifest.files(), name)
        with whole as folder:
            copy = Path(beside) / name
            copy.mkdir()
            for record in manifest.files():
                shutil.copyfile(folder / record.name, copy / record.name)
        copy.rename(out / name)
    (out / "latest").write_text(name, encoding="utf-8")
    for script in CONVERTERS:
        shutil.copy(Path(deepspeed.__file__).parent / "utils" / script, out / script)


def export_safetensors(tier: Tier, manifest: Manifest, out: Path) -> int:
    """Write the model's weights, in float32, as one file; return how many tensors it has.

    Tensors that are one in the model (tied weights) are in the file once for each name.

    Args:
        tier: that has the checkpoint.
        manifest: of it.
        out: a folder that has no `WEIGHTS_NAME`.

    Raises:
        FilesDamagedError: files are not as they were written; nothing was made.
        OSError: the storage refuses, or there is no room.
    """
    attempt = manifest.attempt
    name = tag(attempt.iteration)
    with tier.whole(files_folder(tier, attempt), manifest.files(), name) as folder:
        state: Mapping[str, torch.Tensor] = get_fp32_state_dict_from_zero_checkpoint(
            str(folder.parent), folder.name
        )
    tensors = {key: value.detach().clone().contiguous() for key, value in state.items()}
    about = {
        "format": "pt",
        "castor_job": attempt.job,
        "castor_run": attempt.run,
        "castor_iteration": str(attempt.iteration),
    }
    out.mkdir(parents=True, exist_ok=True)
    beside = out / f".{WEIGHTS_NAME}.unfinished"
    save_file(tensors, str(beside), metadata=about)
    beside.rename(out / WEIGHTS_NAME)
    return len(tensors)
