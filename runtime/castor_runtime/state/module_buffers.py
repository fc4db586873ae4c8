"""The buffers of a module, which may appear, change and go away while it trains.

Those that are as they were at the start have sections in the part. All others (made in a forward
pass, of another shape or dtype, tied to others than before, or no more) go into the meta, which
has room for whatever comes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from castor_runtime.state.sections import Sections

_Tied = dict[tuple[str, ...], torch.Tensor]
"""Tensors by all their names."""


@dataclass(frozen=True, slots=True)
class _Planned:
    names: tuple[str, ...]
    dtype: torch.dtype
    shape: tuple[int, ...]

    def fits(self, tensor: torch.Tensor | None) -> bool:
        return (
            tensor is not None and tensor.dtype == self.dtype and tuple(tensor.shape) == self.shape
        )


class ModuleBuffers:
    """Reads and writes the buffers of `module`.

    Args:
        module: whose.
        device: where those are put that were not on the CPU.

    Raises:
        ValueError: a parameter is not partitioned, and so in nobody's care.
    """

    def __init__(self, module: torch.nn.Module, device: torch.device) -> None:
        self._module = module
        self._device = device
        self._modules = frozenset(name for name, _ in module.named_modules())
        self._start = _registered(module)
        self._planned = sorted(
            (
                _Planned(names, tensor.dtype, tuple(tensor.shape))
                for names, tensor in _tied(self._start).items()
            ),
            key=lambda planned: planned.names,
        )

    def tensors(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Return name ("buffer/norm.mean"), dtype and shape of each that has a section."""
        return [(_section(planned), planned.dtype, planned.shape) for planned in self._planned]

    def live(self) -> list[torch.Tensor | None]:
        """Return the tensors in the order of `tensors`; None where it is no longer as planned."""
        owners = {name: module._buffers for name, module in self._module.named_modules()}
        found = [
            [
                owners.get(owner, {}).get(leaf)
                for owner, _, leaf in (name.rpartition(".") for name in planned.names)
            ]
            for planned in self._planned
        ]
        return [
            first if planned.fits(first) and all(other is first for other in others) else None
            for planned, (first, *others) in zip(self._planned, found, strict=True)
        ]

    def small(self) -> dict[str, Any]:
        """Return what departs from the plan, for the meta; empty if nothing does.

        Raises:
            ValueError: a buffer or a parameter is where a fresh process would have no place for it;
                names it.
        """
        now = _registered(self._module)
        planned = {plan.names: plan for plan in self._planned}
        changed: list[dict[str, Any]] = []
        for names, tensor in _tied(now).items():
            if names in planned and planned[names].fits(tensor):
                continue
            owners = [self._owner(name) for name in names]
            changed.append(
                {
                    "names": list(names),
                    "persistent": [
                        leaf not in owner._non_persistent_buffers_set for owner, leaf in owners
                    ],
                    "on_device": tensor.device.type != "cpu",
                    "value": tensor,
                }
            )
        none = [name for name, old in self._start.items() if old is not None and name in now]
        departures = {
            "changed": changed,
            "none": [name for name in none if now[name] is None],
            "gone": [name for name in self._start if name not in now],
        }
        return {key: value for key, value in departures.items() if value}

    def reshape(self, small: Mapping[str, Any]) -> None:
        """Have the buffers that `small` tells of, and those only."""
        for entry in small.get("changed", ()):
            value = entry["value"].to(self._device) if entry["on_device"] else entry["value"]
            for name, persistent in zip(entry["names"], entry["persistent"], strict=True):
                owner, leaf = self._owner(name)
                if hasattr(owner, leaf):
                    delattr(owner, leaf)
                owner.register_buffer(leaf, value, persistent=persistent)
        for name in small.get("none", ()):
            owner, leaf = self._owner(name)
            owner._buffers[leaf] = None
        for name in small.get("gone", ()):
            owner, leaf = self._owner(name)
            owner._buffers.pop(leaf, None)
            owner._non_persistent_buffers_set.discard(leaf)

    def restore(self, small: Mapping[str, Any], held: Sections) -> None:
        """Set the buffers to what `small` told, and the others to those sections that there are."""
        self.reshape(small)
        now = _registered(self._module)
        departed = departed_names(small)
        for planned in self._planned:
            name = _section(planned)
            target = now.get(planned.names[0])
            if name in held and target is not None and departed.isdisjoint(planned.names):
                held.copy(name, target.data)

    def _owner(self, name: str) -> tuple[torch.nn.Module, str]:
        owner, _, leaf = name.rpartition(".")
        if owner not in self._modules:
            raise ValueError(
                f"buffer {name} belongs to a module that was not there when Checkpointer was made, "
                "so a recovery would have no place for it: make the module before"
            )
        return self._module.get_submodule(owner), leaf


def departed_names(small: Mapping[str, Any]) -> set[str]:
    """Return the names of all buffers whose sections, if any, say nothing."""
    names = {name for entry in small.get("changed", ()) for name in entry["names"]}
    return names | set(small.get("none", ())) | set(small.get("gone", ()))


def _registered(module: torch.nn.Module) -> dict[str, torch.Tensor | None]:
    """Return every buffer by name, None where one is declared and not yet made."""
    found: dict[str, torch.Tensor | None] = {}
    for prefix, owner in module.named_modules():
        dot = f"{prefix}." if prefix else ""
        for leaf, parameter in owner._parameters.items():
            if parameter is not None and not hasattr(parameter, "ds_id"):
                raise ValueError(
                    f"parameter {dot}{leaf} was added after deepspeed.initialize, so nothing "
                    "trains or checkpoints it: make it before, or a buffer of it"
                )
        found.update({dot + leaf: tensor for leaf, tensor in owner._buffers.items()})
    return found


def _tied(registered: Mapping[str, torch.Tensor | None]) -> _Tied:
    names: dict[int, list[str]] = {}
    tensors: dict[int, torch.Tensor] = {}
    for name, tensor in registered.items():
        if tensor is not None:
            names.setdefault(id(tensor), []).append(name)
            tensors[id(tensor)] = tensor
    return {tuple(names[key]): tensor for key, tensor in tensors.items()}


def _section(planned: _Planned) -> str:
    return f"buffer/{planned.names[0]}"


def held_names(small: Mapping[str, Any]) -> Sequence[tuple[str, bool, torch.Tensor]]:
    """Return name, whether a state_dict has it, and value of each buffer that `small` holds."""
    return [
        (name, persistent, entry["value"])
        for entry in small.get("changed", ())
        for name, persistent in zip(entry["names"], entry["persistent"], strict=True)
    ]
