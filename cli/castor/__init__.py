"""The castor command, and what a training script imports: `from castor import Checkpointer`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from castor_runtime.trainer.checkpointer import Checkpointer as Checkpointer
    from castor_runtime.trainer.tensor_state import TensorState as TensorState

__all__ = ["Checkpointer", "TensorState"]


def __getattr__(name: str) -> object:
    # The command and the simulator must not wait for torch, which these two import.
    if name == "Checkpointer":
        from castor_runtime.trainer.checkpointer import Checkpointer  # noqa: PLC0415

        return Checkpointer
    if name == "TensorState":
        from castor_runtime.trainer.tensor_state import TensorState  # noqa: PLC0415

        return TensorState
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
