"""Castor's scalars in the monitor that the user's own DeepSpeed configuration enables.

TensorBoard, Weights & Biases, Comet or CSV files: what DeepSpeed writes loss and learning rate to,
over the same axis, the samples that were trained. Names begin with `Train/Castor/`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from castor_runtime.trainer.trainer_log import NewestCheckpoint


class EngineMonitor:
    """Writes an engine's scalars after each iteration; nothing, if it has no monitor.

    Args:
        engine: that trains.
        generation: of its trainer: the first is 1.
        warn: told once if writing fails; nothing is written after that, and training goes on.
    """

    def __init__(self, engine: Any, generation: int, warn: Callable[[str], None]) -> None:
        monitor = getattr(engine, "monitor", None)
        self._monitor = monitor if getattr(monitor, "enabled", False) is True else None
        self._engine = engine
        self._generation = generation
        self._warn = warn

    def follow(self, generation: int) -> None:
        """Write for another generation from now on."""
        self._generation = generation

    def write(self, iteration: int, newest: NewestCheckpoint | None) -> None:
        """Write what is known when an iteration has ended.

        Args:
            iteration: which one.
            newest: the newest checkpoint that is complete; None: there is none yet.
        """
        if self._monitor is None:
            return
        scalars = {"recoveries": self._generation - 1.0}
        if newest is not None:
            scalars |= {
                "checkpoint_lag_iterations": float(iteration - newest.iteration),
                "checkpoint_s": newest.seconds,
                "checkpoint_stall_s": newest.stall_s,
            }
        samples = self._engine.global_samples
        try:
            self._monitor.write_events(
                [(f"Train/Castor/{name}", value, samples) for name, value in scalars.items()]
            )
        except Exception as error:  # noqa: BLE001 - a full disk, a server that is away
            self._monitor = None
            self._warn(
                f"the monitor of DeepSpeed's configuration cannot be written, and gets nothing of "
                f"Castor any more: {type(error).__name__}: {error}"
            )
