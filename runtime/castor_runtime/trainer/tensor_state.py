"""Plain PyTorch tensors as a state to checkpoint, without DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from castor_runtime.state.protocol import NoPersistentFormError, PersistentPart, Stateful
from castor_runtime.state.sections import Section, Sections, lay_out
from castor_runtime.trainer.left_gradients import LeftGradients
from castor_runtime.trainer.optimizer_state import OptimizerState
from castor_runtime.trainer.swap.errors import CannotSwapError

_NO_FORM = "plain tensors have no persistent form: train without --persist"


class TensorState:
    """Named tensors of this rank, and the optimizer that updates them if there is one.

    Without an optimizer the user calls `Checkpointer.before_update()` before the tensors change.
    With one, tensors that are not its parameters may change at any time.
    The tensors given must stay the same objects; their values may change.

    Args:
        tensors: by name; contiguous, all on one device.
        optimizer: its own tensors and options are then checkpointed too.

    Raises:
        ValueError: no tensor is given, or one is not contiguous.
    """

    clone_at_capture: frozenset[str] = frozenset()

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        if not tensors:
            raise ValueError("TensorState holds nothing: give at least one tensor")
        for name, tensor in tensors.items():
            if not tensor.is_contiguous():
                raise ValueError(f"tensor {name!r} is not contiguous: give tensor.contiguous()")
        self._tensors = dict(tensors)
        self._iteration = 0
        self.optimizer = optimizer
        self._optimizer_state: OptimizerState | None = None
        flat: list[tuple[torch.Tensor, int]] = []
        if optimizer is not None:
            flat = [
                (p, g) for g, entry in enumerate(optimizer.param_groups) for p in entry["params"]
            ]
            self._optimizer_state = OptimizerState(
                optimizer, [parameter for parameter, _ in flat], [group for _, group in flat]
            )
        moments = self._optimizer_state.tensors() if self._optimizer_state else []
        # By address: a state_dict's tensors are others than the parameters, over the same memory.
        updated = {p.data_ptr() for p, _ in flat}
        self.trained = frozenset(
            [
                name
                for name, tensor in self._tensors.items()
                if optimizer is None or tensor.data_ptr() in updated
            ]
            + [name for name, _, _ in moments]
        )
        self.sections: tuple[Section, ...] = lay_out(
            [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self._tensors.items()]
            + moments
        )

    def stepped(self) -> None:
        """Count one more update."""
        self._iteration += 1

    def iteration(self) -> int:
        """Return the number of updates."""
        return self._iteration

    def device(self) -> torch.device:
        """Return where the tensors are."""
        return next(iter(self._tensors.values())).device

    def live(self) -> list[torch.Tensor | None]:
        """Return the live tensor of each section."""
        moments = self._optimizer_state.live() if self._optimizer_state else []
        return [*self._tensors.values(), *moments]

    def meta(self) -> dict[str, Any]:
        """Return the count of updates and the optimizer's options."""
        small = self._optimizer_state.small() if self._optimizer_state else None
        return {"iteration": self._iteration, "optimizer": small}

    def restore(self, held: Sections, meta: Mapping[str, Any]) -> None:
        """Set the live tensors."""
        for name, tensor in self._tensors.items():
            held.copy(name, tensor.detach())
        if self._optimizer_state is not None:
            self._optimizer_state.restore(meta["optimizer"], held)
        self._iteration = meta["iteration"]

    def restore_persistent(self, part: PersistentPart) -> dict[str, Any]:
        """Refuse: see `write_template`."""
        del part
        raise NoPersistentFormError(_NO_FORM)

    def interrupted_iteration(self) -> LeftGradients:
        """Return what makes torch forget an iteration; see `Interruptible`.

        Raises:
            CannotSwapError: more than torch alone trains these tensors.
        """
        if type(self) is not TensorState:
            raise CannotSwapError(
                f"{type(self).__name__} does not say what an interrupted iteration leaves in its "
                "engine: define `interrupted_iteration`"
            )
        tensors = [one for one in self.live() if one is not None]
        return LeftGradients(tensors, self.optimizer)

    def write_template(self, path: Path) -> None:
        """Refuse: there is no persistent format of plain tensors."""
        del path
        raise NoPersistentFormError(_NO_FORM)

    def watch_first_iterations(
        self, user: Mapping[str, Stateful], tell: Callable[[str], None]
    ) -> None:
        """Look at nothing: all that trains was given by name."""
