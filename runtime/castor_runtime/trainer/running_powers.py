"""The running powers of beta in DeepSpeedCPUAdam, restored to the last bit.

Its C++ object multiplies beta**t up from update to update, and takes `pow` only where the number of
the update jumps (DeepSpeed 0.19.8, `csrc/includes/cpu_adam.h`, `IncrementStep`). After a restart it
jumps, and the two differ by an ulp. There is no way to set the powers, so updates of a parameter of
one element are replayed, by their numbers, until the powers are what they were (22 s for 100,000
updates of two groups on two busy cores).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch


class RunningPowers:
    """Follows which updates made the powers, and makes them anew.

    Args:
        optimizer: of any class; only DeepSpeedCPUAdam has running powers.
        parameters: that it updates, in the order of the updates.
        groups: for each parameter, the index of its group.

    Attributes:
        first: number of the first update that went into the powers; None without powers.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[torch.Tensor],
        groups: Sequence[int],
    ) -> None:
        self._optimizer: Any = optimizer
        self._parameters = parameters
        self._groups = groups
        has_powers = hasattr(getattr(optimizer, "ds_opt_adam", None), "adam_update")
        self.first: int | None = self._done() + 1 if has_powers else None

    def restore(self, first: int | None) -> None:
        """Replay from update `first` to that which the optimizer's state has now."""
        if self.first is None or first is None:
            return
        self.first = first
        # Updates of one number in a row change nothing, so one for each change of group is enough.
        order = [group for group, _ in itertools.groupby(self._groups)]
        options = [self._optimizer.param_groups[group] for group in order]
        one, grad, mean, square = (torch.zeros(1) for _ in range(4))
        update = self._optimizer.ds_opt_adam.adam_update
        with torch.no_grad():
            for number in range(first, self._done() + 1):
                for group in options:
                    update(
                        self._optimizer.opt_id,
                        number,
                        float(group["lr"]),
                        *group["betas"],
                        group["eps"],
                        group["weight_decay"],
                        group["bias_correction"],
                        one,
                        grad,
                        mean,
                        square,
                    )

    def _done(self) -> int:
        states = (self._optimizer.state.get(parameter) for parameter in self._parameters)
        return max((int(state.get("step", 0)) for state in states if state), default=0)
