"""Modules that keep state outside parameters and buffers, in `get_extra_state`."""

from __future__ import annotations

import torch


def extra_state_modules(module: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    """Return by name the modules that have extra state, as layers of FP8 libraries do.

    Raises:
        ValueError: one can say its extra state, but not set it.
    """
    plain = torch.nn.Module
    found = [
        (name, part)
        for name, part in module.named_modules()
        if type(part).get_extra_state is not plain.get_extra_state
    ]
    for name, part in found:
        if type(part).set_extra_state is plain.set_extra_state:
            raise ValueError(
                f"module {name or 'model'} ({type(part).__name__}) has get_extra_state() but no "
                "set_extra_state(), so a checkpoint could not be loaded: define both"
            )
    return found
