"""Failures as an engine takes them: who is struck when, how, and when a machine is back."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Strikes(NamedTuple):
    """A block of failures in order of time, one row a failure.

    Attributes:
        time_ns: when, int64, never decreasing, not within a block nor from block to block.
        machine: int32; a position of the job (cloud) or a machine (fleet).
        hardware: int8; 1 if the machine is lost, 0 if a restart fixes it.
        restore_ns: int64; how long until a replacement (cloud) or the machine itself (fleet) is
            there. Drawn beforehand, so that every strategy meets the same luck.
    """

    time_ns: NDArray[np.int64]
    machine: NDArray[np.int32]
    hardware: NDArray[np.int8]
    restore_ns: NDArray[np.int64]

    def rows(self, chosen: NDArray[np.bool_]) -> Strikes:
        """Return the chosen rows."""
        return Strikes(
            self.time_ns[chosen],
            self.machine[chosen],
            self.hardware[chosen],
            self.restore_ns[chosen],
        )
