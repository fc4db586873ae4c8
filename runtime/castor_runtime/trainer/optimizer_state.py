"""The state of a torch optimizer over given parameters, laid out before it exists.

Optimizers make their state at the first step, but a part's size must be known before. So one step
is taken on a small stand-in parameter of each group: what it leaves in the optimizer tells which
tensors a real parameter will have (as long as it: sections) and which small values (in the meta).
The same holds for each optimizer that it wraps. An optimizer whose class has a `state_dict` of its
own is asked for that too; tensors that are sections stand in it by their names.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from castor_runtime.state.optimizer_attributes import (
    MovingAttributes,
    has_own_state_dict,
    inner_optimizers,
    put_back_attributes,
    snapshot_attributes,
)
from castor_runtime.state.sections import Sections

_OF_THE_PROCESS = ("params", "param_names")
"""What a group holds of this process: parameters, and the names that torch keeps of them."""

_SECTION = "castor section"
"""Key of what stands for a tensor that is a section, in the meta's copy of a `state_dict`."""

_STAND_IN_ELEMENTS = 8


class OptimizerState:
    """Reads and writes the state of `optimizer` for `parameters`, named by their index.

    Args:
        optimizer: any torch optimizer whose tensors are as long as their parameter, or small.
        parameters: the tensors that it updates, in the order that numbers them.
        groups: for each parameter, the index of its parameter group.

    Raises:
        ValueError: the optimizer cannot be laid out.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[torch.Tensor],
        groups: Sequence[int],
    ) -> None:
        self.optimizer = optimizer
        self._parameters = list(parameters)
        self._groups = list(groups)
        self._optimizers = [("", optimizer), *inner_optimizers(optimizer)]
        templates = {
            group: _template(self._optimizers, group, parameters[groups.index(group)])
            for group in sorted(set(groups))
        }
        self._layouts = [
            _Layout(
                f"{name}." if name else "",
                one,
                self._parameters,
                [templates[group][index] for group in self._groups],
            )
            for index, (name, one) in enumerate(self._optimizers)
        ]
        self.has_own_state_dict = has_own_state_dict(optimizer)
        self._attributes = MovingAttributes(self._optimizers)

    def tensors(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Return name ("exp_avg/0", "inner.exp_avg/0"), dtype and shape of each long tensor."""
        return [tensor for layout in self._layouts for tensor in layout.tensors()]

    def live(self) -> list[torch.Tensor | None]:
        """Return the tensors in the order of `tensors`; None where no step has made them yet."""
        return [tensor for layout in self._layouts for tensor in layout.live()]

    def small(self) -> dict[str, Any]:
        """Return options of the groups and all that is no long tensor, for the meta."""
        outer, *inner = self._layouts
        small = outer.small()
        if inner:
            small["inner"] = {layout.prefix: layout.small() for layout in inner}
        moved = self._attributes.values()
        if moved:
            small["attributes"] = moved
        if self.has_own_state_dict:
            names = [name for name, _, _ in self.tensors()]
            held = {
                id(tensor): name
                for name, tensor in zip(names, self.live(), strict=True)
                if tensor is not None
            }
            with self._parameters_in_groups():
                small["own"] = _with_names(self.optimizer.state_dict(), held)
        return small

    def unheld(self) -> list[tuple[str, str]]:
        """Return path and type of attributes that have moved and that no checkpoint holds."""
        return [] if self.has_own_state_dict else self._attributes.unheld()

    def restore(self, small: Mapping[str, Any], held: Sections) -> None:
        """Set the optimizer to what `small` returned, and its long tensors to their sections.

        Tensors are copied in place where the optimizer has them, and made where it does not.

        Raises:
            DamagedError: a section is not whole.
        """
        if "own" in small:
            self._load_own(small["own"], held)
        self.restore_attributes(small)
        for layout in self._layouts:
            layout.restore(small["inner"][layout.prefix] if layout.prefix else small, held)

    def restore_attributes(self, small: Mapping[str, Any]) -> None:
        """Set only what lies outside the optimizer's state: DeepSpeed's own loading leaves that."""
        self._attributes.restore(small.get("attributes", {}))

    def _load_own(self, own: Any, found: Sections) -> None:
        """Call the optimizer's own `load_state_dict`; groups stay the objects that they were.

        torch makes new groups at each loading. DeepSpeed and schedules, and a wrapped optimizer
        that shares them, go on with those that they know.
        """
        groups = [(one, one.param_groups) for _, one in self._optimizers]
        with self._parameters_in_groups():
            self.optimizer.load_state_dict(_with_tensors(own, found))
        for one, before in groups:
            for group, loaded in zip(before, one.param_groups, strict=True):
                group.update({k: v for k, v in loaded.items() if k not in _OF_THE_PROCESS})
            one.param_groups = before

    @contextmanager
    def _parameters_in_groups(self) -> Iterator[None]:
        """Let all groups have their parameters: between steps DeepSpeed leaves them empty."""
        before = [
            (entry, entry["params"]) for _, one in self._optimizers for entry in one.param_groups
        ]
        for _, one in self._optimizers:
            for index, entry in enumerate(one.param_groups):
                entry["params"] = [
                    parameter
                    for parameter, group in zip(self._parameters, self._groups, strict=True)
                    if group == index
                ]
        try:
            yield
        finally:
            for entry, parameters in reversed(before):
                entry["params"] = parameters


class _Layout:
    """The state of one optimizer, which may be wrapped in another."""

    def __init__(
        self,
        prefix: str,
        optimizer: torch.optim.Optimizer,
        parameters: list[torch.Tensor],
        templates: Sequence[Mapping[str, Any]],
    ) -> None:
        self.prefix = prefix
        self._optimizer = optimizer
        self._parameters = parameters
        self._long: list[dict[str, torch.dtype]] = []
        self._small_devices: list[dict[str, torch.device]] = []
        for parameter, made in zip(parameters, templates, strict=True):
            template = dict(made) | dict(optimizer.state.get(parameter, {}))
            long = {
                key: value.dtype
                for key, value in template.items()
                if _is_long(value, parameter) or _is_long(value, None)
            }
            self._long.append(dict(sorted(long.items())))
            self._small_devices.append(
                {
                    key: value.device
                    for key, value in template.items()
                    if isinstance(value, torch.Tensor) and key not in long
                }
            )

    def tensors(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        return [
            (self._section(index, key), dtype, tuple(parameter.shape))
            for index, parameter in enumerate(self._parameters)
            for key, dtype in self._long[index].items()
        ]

    def _section(self, index: int, key: str) -> str:
        return f"{self.prefix}{key}/{index}"

    def live(self) -> list[torch.Tensor | None]:
        return [
            value if self._is_as_laid_out(index, key, value) else None
            for index, parameter in enumerate(self._parameters)
            for key in self._long[index]
            for value in (self._optimizer.state.get(parameter, {}).get(key),)
        ]

    def small(self) -> dict[str, Any]:
        # A state may make, change and drop its tensors as it goes: what is not as it was laid out
        # is here, and so are the names of those that are not there.
        states: dict[int, Any] = {}
        absent: dict[int, list[str]] = {}
        for index, parameter in enumerate(self._parameters):
            state = self._optimizer.state.get(parameter)
            states[index] = (
                None
                if not state
                else {
                    key: value
                    for key, value in state.items()
                    if not self._is_as_laid_out(index, key, value)
                }
            )
            missing = [key for key in self._long[index] if state and key not in state]
            if missing:
                absent[index] = missing
        return {"param_groups": _options(self._optimizer), "state": states, "absent": absent}

    def _is_as_laid_out(self, index: int, key: str, value: object) -> bool:
        return (
            isinstance(value, torch.Tensor)
            and self._long[index].get(key) == value.dtype
            and value.shape == self._parameters[index].shape
        )

    def restore(self, small: Mapping[str, Any], held: Sections) -> None:
        optimizer = self._optimizer
        for group, options in zip(optimizer.param_groups, small["param_groups"], strict=True):
            group.update(options)
        for index, parameter in enumerate(self._parameters):
            values = small["state"][index]
            if values is None:
                optimizer.state.pop(parameter, None)
                continue
            absent = small.get("absent", {}).get(index, ())
            found = {
                key: dtype
                for key, dtype in self._long[index].items()
                if key not in values and key not in absent
            }
            state = optimizer.state[parameter]
            for key in [key for key in state if key not in found and key not in values]:
                del state[key]
            for key, value in values.items():
                device = self._device_of(index, key, value)
                state[key] = value if device is None else value.to(device)
            for key, dtype in found.items():
                live = state.get(key)
                # torch's own loading may have cast it to the parameter's dtype.
                if live is None or live.dtype != dtype or live.shape != parameter.shape:
                    state[key] = torch.empty_like(parameter, dtype=dtype)
                    state[key].requires_grad_(False)
                held.copy(self._section(index, key), state[key].data)

    def _device_of(self, index: int, key: str, value: object) -> torch.device | None:
        """Return where a value that is no long tensor belongs; None for what is no tensor."""
        if not isinstance(value, torch.Tensor):
            return None
        default = self._parameters[index].device if value.dim() else value.device
        return self._small_devices[index].get(key, default)


def _with_names(tree: Any, held: Mapping[int, str]) -> Any:
    """Return the tree with each tensor that is a section replaced by its name."""
    if isinstance(tree, torch.Tensor):
        return {_SECTION: held[id(tree)]} if id(tree) in held else tree
    if isinstance(tree, Mapping):
        return {key: _with_names(value, held) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(_with_names(value, held) for value in tree)
    return tree


def _with_tensors(tree: Any, found: Sections) -> Any:
    if isinstance(tree, Mapping):
        if set(tree) == {_SECTION}:
            return found[tree[_SECTION]].clone()
        return {key: _with_tensors(value, found) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(_with_tensors(value, found) for value in tree)
    return tree


def _is_long(value: object, parameter: torch.Tensor | None) -> bool:
    if not isinstance(value, torch.Tensor):
        return False
    if parameter is None:
        return value.shape == (_STAND_IN_ELEMENTS,)
    return value.shape == parameter.shape and value.numel() > 1


def _options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [
        {key: copy.deepcopy(value) for key, value in group.items() if key not in _OF_THE_PROCESS}
        for group in optimizer.param_groups
    ]


def _template(
    optimizers: Sequence[tuple[str, torch.optim.Optimizer]], group: int, like: torch.Tensor
) -> list[dict[str, Any]]:
    """Return the state that one step on a stand-in leaves in each; all are then as before."""
    stand_in = torch.zeros(_STAND_IN_ELEMENTS, dtype=like.dtype, device=like.device)
    stand_in.requires_grad_(True)
    stand_in.grad = torch.zeros_like(stand_in)
    attributes = snapshot_attributes(optimizers)
    before = [
        (entry, old, entry["params"])
        for _, one in optimizers
        for entry, old in zip(one.param_groups, _options(one), strict=True)
    ]
    for _, one in optimizers:
        for index, entry in enumerate(one.param_groups):
            entry["params"] = [stand_in] if index == group else []
    outermost = optimizers[0][1]
    # The plain function: hooks, and the count that learning-rate schedules keep, must not see it.
    step = inspect.unwrap(type(outermost).step)
    try:
        with torch.no_grad():
            step(outermost)
    except Exception as error:
        raise ValueError(
            f"the state of {type(outermost).__name__} cannot be laid out: a step on a parameter of "
            f"{_STAND_IN_ELEMENTS} elements fails ({error}); use an optimizer whose state is "
            "element by element, such as Adam"
        ) from error
    finally:
        for entry, old, held in reversed(before):  # groups that are shared are in it twice
            entry.update(old)
            entry["params"] = held
        states = [dict(one.state.pop(stand_in, {})) for _, one in optimizers]
        put_back_attributes(attributes)
    return states
