"""The states of every random generator that training draws from."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

_cuda: Any = torch.cuda  # which has no types for some of its names


def capture_random_state() -> dict[str, Any]:
    """Return the states of python's, numpy's, torch's and the current CUDA device's generators."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002 - the user's draws, not ours
        "torch": torch.get_rng_state(),
    }
    if _cuda.is_initialized():  # else asking would make a context on a GPU that nobody uses
        state["cuda"] = torch.cuda.get_rng_state()
        state["cuda_tracker"] = dict(_tracker().get_states())
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set what `capture_random_state` returned. Everything drawn before is forgotten."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002 - as above
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
        _tracker().set_states(dict(state["cuda_tracker"]))


def _tracker() -> Any:
    """Return the generators that DeepSpeed keeps beside torch's for checkpointed activations."""
    from deepspeed.runtime.activation_checkpointing import checkpointing  # noqa: PLC0415

    return checkpointing.get_cuda_rng_tracker()
