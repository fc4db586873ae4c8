"""A loss as a number, without making training wait for the GPU that computes it."""

from __future__ import annotations

from typing import Any, Protocol

import torch

_cuda: Any = torch.cuda  # which has no types for some of its names


class Loss(Protocol):
    """A loss that is known now, or later."""

    def is_known(self) -> bool:
        """Return whether `number` returns at once."""
        ...

    def number(self) -> float | None:
        """Return it; waits until it is known."""
        ...


def read_loss(loss: Any) -> Loss:
    """Begin to read a loss: a number, a tensor of one element, or None.

    Raises:
        TypeError: it is none of those.
        RuntimeError: the tensor has more elements, or none.
    """
    if isinstance(loss, torch.Tensor) and loss.device.type == "cuda":
        return _OnItsWay(loss)
    if loss is None:
        return _Known(None)
    return _Known(float(loss.detach() if isinstance(loss, torch.Tensor) else loss))


class _Known:
    def __init__(self, value: float | None) -> None:
        self._value = value

    def is_known(self) -> bool:
        return True

    def number(self) -> float | None:
        return self._value


class _OnItsWay:
    """Copied to the host behind all that its stream was asked for."""

    def __init__(self, loss: torch.Tensor) -> None:
        self._number = torch.empty((), dtype=torch.float64, pin_memory=True)
        self._number.copy_(loss.detach().reshape(()), non_blocking=True)
        self._copied = _cuda.Event(blocking=True)
        self._copied.record(torch.cuda.current_stream(loss.device))

    def is_known(self) -> bool:
        return bool(self._copied.query())

    def number(self) -> float | None:
        self._copied.synchronize()
        return float(self._number)
