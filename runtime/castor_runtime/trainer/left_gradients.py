"""What an interrupted iteration leaves behind where torch alone trains: gradients."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch

from castor_runtime.trainer.swap.errors import CannotSwapError

_KEEP_MORE: Final = (
    ("torch.nn.parallel", "DistributedDataParallel"),
    ("torch.distributed.fsdp", "FSDPModule"),
    ("torch.distributed.fsdp", "FullyShardedDataParallel"),
)
"""Modules in which a backward that was interrupted leaves counts that nothing sets back.

By name, as the import of those that a script does not use takes a second.
"""


class LeftGradients:
    """The gradients of some tensors; made before they train.

    A gradient belongs to a parameter, and tensors that were given by name are often others over the
    same memory (a `state_dict`'s). A gradient that was left would be added to, silently. So the
    parameters are looked for among all objects of this process, once.

    Args:
        tensors: that are checkpointed.
        optimizer: that updates them; None: the script does.

    Raises:
        CannotSwapError: this process has a module of `_KEEP_MORE`.
    """

    def __init__(
        self, tensors: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer | None
    ) -> None:
        addresses = {_address(one) for one in tensors} - {0}
        found: dict[int, torch.Tensor] = {}
        for one in _plain_tensors():
            if one.is_leaf and _address(one) in addresses:
                found[id(one)] = one
        for group in optimizer.param_groups if optimizer is not None else ():
            found.update({id(one): one for one in group["params"]})
        self._parameters = tuple(found.values())

    def throw_away(self) -> None:
        """Leave every tensor without a gradient, as it was in a new process."""
        for one in self._parameters:
            one.grad = None


def _plain_tensors() -> Iterator[torch.Tensor]:
    """Yield all tensors of this process.

    Raises:
        CannotSwapError: it has a module of `_KEEP_MORE`.
    """
    keep_more = tuple(
        vars(sys.modules[module])[name] for module, name in _KEEP_MORE if module in sys.modules
    )
    is_refused: dict[type[Any], bool] = {}
    for one in gc.get_objects():
        # By its type: what stands for something else may load that when it is asked what it is.
        kind = type(one)
        if kind is torch.Tensor or kind is torch.nn.Parameter:
            if one.layout is torch.strided:
                yield one
        elif is_refused.setdefault(kind, issubclass(kind, keep_more)):
            raise CannotSwapError(f"{kind.__name__} keeps what an interrupted backward leaves")


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
