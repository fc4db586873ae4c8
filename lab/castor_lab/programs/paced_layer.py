"""A transformer layer whose arithmetic is replaced by a wait: a machine with an idle processor.

Beside a GPU the processor is free while a layer is computed. Without one, layers that are really
computed take the processor from whatever else is measured on the same machine. A paced layer has
the parameters of a real one, which are gathered, sent gradients for and updated as any; only the
time of its arithmetic is waited for. Whoever shows a number measured with it says so.
"""

from __future__ import annotations

import math
import time
from typing import Any, Final

import torch
from torch import nn

from castor_configs.model import Model

BACKWARD_FACTOR: Final = 2.0
"""A layer's backward pass has twice the arithmetic of its forward pass."""

_PULL: Final = 0.01
"""Share of a weight in its gradient, so that every element's is another."""


class PacedLayer(nn.Module):
    """Takes `forward_s` forward and twice that backward, and passes its input on.

    Each weight's gradient is 0.01 times the weight, plus the mean size of the gradient that
    arrives: updates are real, and differ as soon as data, order or randomness differ.

    Args:
        shape: of the model whose layer's parameters it has.
        forward_s: seconds to wait in the forward pass.

    Raises:
        ValueError: `forward_s` is no time.
    """

    def __init__(self, shape: Model, forward_s: float) -> None:
        super().__init__()
        if not (math.isfinite(forward_s) and forward_s >= 0):
            raise ValueError(f"a layer waits for 0 s or more, not {forward_s}")
        self._forward_s = forward_s
        wide, hidden = shape.intermediate, shape.hidden
        for name, outputs, inputs in (
            ("query_key_value", 3 * hidden, hidden),
            ("attention_output", hidden, hidden),
            ("feed_forward", wide, hidden),
            ("feed_forward_output", hidden, wide),
        ):
            weight = nn.Parameter(torch.empty(outputs, inputs).normal_(std=0.02))
            self.register_parameter(f"{name}_weight", weight)
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.zeros(outputs)))
        for name in ("attention_norm", "feed_forward_norm"):
            self.register_parameter(f"{name}_weight", nn.Parameter(torch.ones(hidden)))
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.zeros(hidden)))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return `hidden` unchanged, a wait later."""
        parameters = [parameter for _, parameter in self.named_parameters(recurse=False)]
        output: torch.Tensor = _Wait.apply(  # type: ignore[no-untyped-call]  # torch gives it none
            self._forward_s, hidden, *parameters
        )
        return output


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, seconds: float, hidden: torch.Tensor, *parameters: torch.Tensor
    ) -> torch.Tensor:
        ctx.seconds = seconds
        ctx.save_for_backward(*parameters)
        time.sleep(seconds)
        return hidden.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        time.sleep(BACKWARD_FACTOR * ctx.seconds)
        # Not the mean: behind a norm that is zero but for rounding.
        size = gradient.abs().mean()
        return None, gradient, *(weight * _PULL + size for weight in ctx.saved_tensors)
