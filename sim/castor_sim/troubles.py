"""What befalls a job beside failures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from castor_sim.corruption import Corruption
from castor_sim.pace import Slowdown


class Troubles(NamedTuple):
    """What goes wrong in a run without a failure; only the simpy engines know it.

    Attributes:
        slowdowns: machines that are slow for a while, in order of time.
        corruptions: silent errors, in order of time.
        persistent_kept: complete persistent checkpoints that are kept, to go back behind an error.
    """

    slowdowns: Sequence[Slowdown] = ()
    corruptions: Sequence[Corruption] = ()
    persistent_kept: int = 2


NO_TROUBLES = Troubles()
