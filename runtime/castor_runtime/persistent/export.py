"""A persistent checkpoint taken out of its tier: as DeepSpeed has it, or as one file of weights.

Needs torch and DeepSpeed, and for weights as much memory as the whole model in float32.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import deepspeed
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from safetensors.torch import save_file

from castor_runtime.persistent.manifest import Manifest
from castor_runtime.persistent.storage import CONVERTERS, files_folder, tag
from castor_runtime.persistent.tier import Tier


def export_deepspeed(tier: Tier, manifest: Manifest, out: Path) -> None:
    """Write a folder that plain DeepSpeed loads: `engine.load_checkpoint(OUT)`.

    Args:
        tier: that has the checkpoint.
        manifest: of it.
        out: a folder that has neither such a checkpoint nor `latest` nor the converters.

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


def export_safetensors(tier: Tier, manifest: Manifest, file: Path) -> int:
    """Write the model's weights, in float32, as one file; return how many tensors it has.

    Tensors that are one in the model (tied weights) are in the file once for each name.

    Args:
        tier: that has the checkpoint.
        manifest: of it.
        file: that is made.

    Raises:
        FilesDamagedError: files are not as they were written; nothing was made.
        OSError: the storage refuses, or there is no room.
    """
    attempt = manifest.attempt
    name = tag(attempt.iteration)
    whole = tier.whole(files_folder(tier, attempt), manifest.files(), name)
    # DeepSpeed tells of its progress on standard output.
    with whole as folder, contextlib.redirect_stdout(sys.stderr):
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
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.unfinished")
    save_file(tensors, str(beside), metadata=about)
    beside.chmod(0o644)
    beside.rename(file)
    return len(tensors)
