"""What an optimizer keeps outside `optimizer.state`: inner optimizers, and attributes that move.

torch's own `state_dict` knows neither. A count of steps in an attribute decides how training goes
on as much as a moment does, so plain values that have moved since the start are part of a
checkpoint, and what moves and is no plain value is named.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch

from castor_runtime.state.meta import encode

_LARGEST_BYTES = 1 << 20
"""Of a tensor in an attribute; larger ones are no small state, which is what the meta is for."""

_OF_TORCH = frozenset({"state", "param_groups", "defaults"})
_PLAIN = (bool, int, float, str, bytes, type(None))


def inner_optimizers(optimizer: torch.optim.Optimizer) -> list[tuple[str, torch.optim.Optimizer]]:
    """Return the optimizers that this one wraps, by dotted name, without those that share state."""
    found: list[tuple[str, torch.optim.Optimizer]] = []
    seen = {id(optimizer), id(optimizer.state)}

    def visit(outer: torch.optim.Optimizer, prefix: str) -> None:
        for name, value in sorted(vars(outer).items()):
            for label, inner in _optimizers_in(name, value):
                if id(inner) in seen:
                    continue
                seen.add(id(inner))
                if id(inner.state) not in seen:
                    seen.add(id(inner.state))
                    found.append((f"{prefix}{label}", inner))
                visit(inner, f"{prefix}{label}.")

    visit(optimizer, "")
    return found


def has_own_state_dict(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the optimizer's class says by itself what its state is."""
    return (
        type(optimizer).state_dict is not torch.optim.Optimizer.state_dict
        and type(optimizer).load_state_dict is not torch.optim.Optimizer.load_state_dict
    )


class MovingAttributes:
    """The attributes of some optimizers that have changed since this was made.

    Args:
        optimizers: by name; "" is the outermost.
    """

    def __init__(self, optimizers: Sequence[tuple[str, torch.optim.Optimizer]]) -> None:
        self._optimizers = list(optimizers)
        self._start = {path: _mark(value) for path, value in self._attributes()}

    def values(self) -> dict[str, Any]:
        """Return the plain values that have moved, by path ("t", "inner.t"), for the meta."""
        return {
            path: value
            for path, value in self._attributes()
            if _is_plain(value) and _mark(value) != self._start.get(path)
        }

    def restore(self, values: Mapping[str, Any]) -> None:
        """Set what `values` returned."""
        for path, value in values.items():
            name, _, attribute = path.rpartition(".")
            for owner, optimizer in self._optimizers:
                if owner == name:
                    setattr(optimizer, attribute, value)

    def unheld(self) -> list[tuple[str, str]]:
        """Return path and type of what has moved and is no plain value: no checkpoint holds it."""
        return [
            (path, type(value).__name__)
            for path, value in self._attributes()
            if not _is_plain(value) and _mark(value) != self._start.get(path)
        ]

    def _attributes(self) -> Iterator[tuple[str, Any]]:
        for owner, optimizer in self._optimizers:
            for name, value in vars(optimizer).items():
                if name not in _OF_TORCH and not name.startswith("_optimizer_"):
                    yield (f"{owner}.{name}" if owner else name), value


def snapshot_attributes(
    optimizers: Sequence[tuple[str, torch.optim.Optimizer]],
) -> list[tuple[torch.optim.Optimizer, dict[str, Any]]]:
    """Return the plain attributes of the optimizers as they are, for `put_back_attributes`."""
    return [
        (
            optimizer,
            {
                name: _copied(value)
                for name, value in vars(optimizer).items()
                if name not in _OF_TORCH and _is_plain(value)
            },
        )
        for _, optimizer in optimizers
    ]


def put_back_attributes(
    snapshot: Sequence[tuple[torch.optim.Optimizer, Mapping[str, Any]]],
) -> None:
    """Undo what a trial step has done to plain attributes."""
    for optimizer, values in snapshot:
        for name in [name for name, value in vars(optimizer).items() if name not in values]:
            if name not in _OF_TORCH and _is_plain(vars(optimizer)[name]):
                del vars(optimizer)[name]
        vars(optimizer).update(values)


def _optimizers_in(name: str, value: Any) -> Iterator[tuple[str, torch.optim.Optimizer]]:
    if isinstance(value, torch.optim.Optimizer):
        yield name, value
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _optimizers_in(f"{name}.{index}", item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _optimizers_in(f"{name}.{key}", item)


def _is_plain(value: Any) -> bool:
    """Return whether the value is small, made of plain parts, and refers to no parameter."""
    if isinstance(value, _PLAIN):
        return True
    if isinstance(value, torch.Tensor):
        return (
            not value.requires_grad
            and not isinstance(value, torch.nn.Parameter)
            and not hasattr(value, "ds_id")
            and value.numel() * value.element_size() <= _LARGEST_BYTES
        )
    if type(value) in (list, tuple):
        return all(_is_plain(item) for item in value)
    if type(value) is dict:
        return all(_is_plain(key) and _is_plain(item) for key, item in value.items())
    return False


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if type(value) in (list, tuple):
        return type(value)(_copied(item) for item in value)
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    return value


def _mark(value: Any, depth: int = 3) -> Any:
    """Return something that differs once the value has moved, as far as that can be seen."""
    if isinstance(value, _PLAIN):
        return (type(value).__name__, repr(value))
    if _is_plain(value):
        return hashlib.sha256(encode({"value": value})).digest()
    if isinstance(value, torch.Tensor):
        return (id(value), 0 if value.is_inference() else value._version)
    if depth == 0 or isinstance(value, torch.nn.Module | torch.optim.Optimizer | type):
        return None
    return [_mark(part, depth - 1) for part in _parts(value)]


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [part for item in value.items() for part in item]
    if isinstance(value, list | tuple | set | frozenset | deque):
        return list(value)
    if callable(value) or isinstance(value, ModuleType):
        return []
    return [part for item in getattr(value, "__dict__", {}).items() for part in item]
