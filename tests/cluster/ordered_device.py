"""A device whose rounds are launched in one order on all ranks, as NCCL asks for; it keeps a log.

`CASTOR_LAUNCH_LOG` names a folder: a file there for each trainer's life, a line for each collective
of all ranks that training calls while it has a checkpoint to launch, and for each round. Run by
`test_launches.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from castor_lab.paced_device import PacedDevice
from castor_runtime.trainer.agent_link import TrainerSettings
from castor_runtime.trainer.device import Device
from castor_runtime.trainer.idle_spans import Gate
from castor_runtime.trainer.joining import Exchanging
from castor_runtime.trainer.launches import ByPosition

COPY_BPS = 8_000_000_000
Pieces = Sequence[tuple[int, torch.Tensor]]


class LoggedLaunches(ByPosition):
    """Tells of the points that rounds are launched at."""

    tell: Callable[[str], None]

    def expect(self) -> None:
        """Tell that a checkpoint begins."""
        self.tell("checkpoint")
        super().expect()

    def passed(self, work: Any) -> None:
        """Tell of a collective."""
        self.tell("collective")
        super().passed(work)


def ordered_device(
    settings: TrainerSettings, gate: Gate, exchanging: Exchanging, sub_buffer_bytes: int
) -> Device:
    """Return the device of a job that names this function."""
    from castor_runtime.trainer import joining  # noqa: PLC0415 - its class is replaced here

    log = Path(os.environ["CASTOR_LAUNCH_LOG"]) / f"{settings.generation}-{settings.rank}"
    lines = log.open("w", buffering=1)
    LoggedLaunches.tell = staticmethod(lambda what: print(what, file=lines))
    joining.ByPosition = LoggedLaunches

    def post(number: int, outgoing: Pieces, incoming: Pieces) -> list[Any]:
        LoggedLaunches.tell(f"round {number}")
        return exchanging.post(number, outgoing, incoming)

    device = PacedDevice(post, gate, COPY_BPS, sub_buffer_bytes)
    device.launches_in_order = True
    return device
