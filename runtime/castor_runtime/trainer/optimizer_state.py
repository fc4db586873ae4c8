"""The state of a torch optimizer over given parameters, laid out before it exists.

Optimizers make their state at the first step, but a part's size must be known before. So one step
is taken on a small stand-in parameter of each group: what it leaves in the optimizer tells which
tensors a real parameter will have (as long as it: sections) and which small values (in the meta).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

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
        templates = {
            group: _template(optimizer, group, parameters[groups.index(group)])
            for group in sorted(set(groups))
        }
        self._long: list[dict[str, torch.dtype]] = []
        self._small_devices: list[dict[str, torch.device]] = []
        for parameter, group in zip(self._parameters, groups, strict=True):
            template = templates[group] | dict(optimizer.state.get(parameter, {}))
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
        """Return name ("exp_avg/0"), dtype and shape of each long tensor, by parameter."""
        return [
            (f"{key}/{index}", dtype, tuple(parameter.shape))
            for index, parameter in enumerate(self._parameters)
            for key, dtype in self._long[index].items()
        ]

    def live(self) -> list[torch.Tensor | None]:
        """Return the tensors in the order of `tensors`; None where no step has made them yet."""
        return [
            self.optimizer.state.get(parameter, {}).get(key)
            for index, parameter in enumerate(self._parameters)
            for key in self._long[index]
        ]

    def small(self) -> dict[str, Any]:
        """Return options of the groups and all that is no long tensor, for the meta."""
        states: dict[int, Any] = {}
        for index, parameter in enumerate(self._parameters):
            state = self.optimizer.state.get(parameter)
            states[index] = (
                None
                if not state
                else {key: state[key] for key in state if key not in self._long[index]}
            )
        return {"param_groups": _options(self.optimizer), "state": states}

    def restore(self, small: Mapping[str, Any], tensors: Sequence[torch.Tensor]) -> None:
        """Set the optimizer to what `small` returned and to `tensors`, in the order of `tensors`.

        Tensors are copied in place where the optimizer has them, and made where it does not.
        """
        for group, options in zip(self.optimizer.param_groups, small["param_groups"], strict=True):
            group.update(options)
        remaining = iter(tensors)
        for index, parameter in enumerate(self._parameters):
            found = {key: next(remaining) for key in self._long[index]}
            values = small["state"][index]
            if values is None:
                self.optimizer.state.pop(parameter, None)
                continue
            state = self.optimizer.state[parameter]
            for key in [key for key in state if key not in found and key not in values]:
                del state[key]
            for key, value in values.items():
                device = self._small_devices[index].get(key)
                state[key] = value if device is None else value.to(device)
            for key, source in found.items():
                if key not in state:
                    state[key] = torch.empty_like(parameter, dtype=source.dtype)
                    state[key].requires_grad_(False)
                state[key].data.copy_(source)


def _is_long(value: object, parameter: torch.Tensor | None) -> bool:
    if not isinstance(value, torch.Tensor):
        return False
    if parameter is None:
        return value.shape == (_STAND_IN_ELEMENTS,)
    return value.shape == parameter.shape and value.numel() > 1


def _options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    # Parameters, and the names that torch keeps of them, belong to the process.
    mine = ("params", "param_names")
    return [
        {key: copy.deepcopy(value) for key, value in group.items() if key not in mine}
        for group in optimizer.param_groups
    ]


def _template(optimizer: torch.optim.Optimizer, group: int, like: torch.Tensor) -> dict[str, Any]:
    """Return the state that one step on a stand-in leaves; the optimizer itself is as before."""
    stand_in = torch.zeros(_STAND_IN_ELEMENTS, dtype=like.dtype, device=like.device)
    stand_in.requires_grad_(True)
    stand_in.grad = torch.zeros_like(stand_in)
    options = _options(optimizer)
    parameters = [entry["params"] for entry in optimizer.param_groups]
    for index, entry in enumerate(optimizer.param_groups):
        entry["params"] = [stand_in] if index == group else []
    # The plain function: hooks, and the count that learning-rate schedules keep, must not see it.
    step = inspect.unwrap(type(optimizer).step)
    try:
        with torch.no_grad():
            step(optimizer)
    except Exception as error:
        raise ValueError(
            f"the state of {type(optimizer).__name__} cannot be laid out: a step on a parameter of "
            f"{_STAND_IN_ELEMENTS} elements fails ({error}); use an optimizer whose state is "
            "element by element, such as Adam"
        ) from error
    finally:
        for entry, old, held in zip(optimizer.param_groups, options, parameters, strict=True):
            entry.update(old)
            entry["params"] = held
        state = dict(optimizer.state.pop(stand_in, {}))
    return state
