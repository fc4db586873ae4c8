"""Whether checkpoints may be sent by NCCL: its launches beside training's.

NCCL asks that operations of different communicators are launched in one order on all devices; else
they can wait for each other in a circle. That takes two things:

- The hosts launch in one order on all ranks. Rounds are launched by the thread that trains, at
  points that all ranks pass in the same order (`castor_runtime.trainer.launches`).
- Each device keeps its host's order, though training's collectives and the rounds are on streams
  that do not wait for each other. `NCCL_LAUNCH_ORDER_IMPLICIT` does that, since NCCL 2.26; with
  older ones only the scheme "blocking" is let through, under which training waits for each
  checkpoint and launches nothing while a round is under way.

Why there is no circle then: take the first operation in the order that never ends. All before it
have ended. A rank that has not launched it waits for something, a lock of the driver's, memory, a
collective's end: but for nothing else than what it has launched itself, and all that comes before.
So it goes on, and launches it; and on the device nothing that comes later is in its way.

What is not in this order is what a script does to NCCL from a thread of its own beside the one that
trains. No run on a GPU has tried any of it yet.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from castor_policy.job_options import NCCL

if TYPE_CHECKING:
    import torch

VARIABLE = "NCCL_LAUNCH_ORDER_IMPLICIT"
_FIRST_VERSION = (2, 26)


def launch_order(send: str) -> dict[str, str]:
    """Return what trainers must have in their environment before NCCL reads it, once a process."""
    return {VARIABLE: "1"} if send == NCCL else {}


def check_nccl(device: torch.device, scheme: str) -> None:
    """Refuse NCCL where it cannot send, or where a device does not keep its host's order.

    Args:
        device: where the live state is.
        scheme: by which checkpoints travel.

    Raises:
        ValueError: it cannot be used; says why and what to do.
    """
    if device.type != "cuda":
        raise ValueError(
            f"send is nccl, but training is on {device.type}: NCCL sends from GPUs only; leave "
            "--send cpu, which is the default"
        )
    from torch.cuda import nccl  # noqa: PLC0415 - agents import this module, and no torch

    version: Any = nccl.version()  # type: ignore[no-untyped-call]
    refuse_unordered(version, os.environ.get(VARIABLE, ""), scheme)


def refuse_unordered(version: tuple[int, ...], implicit: str, scheme: str) -> None:
    """Refuse an NCCL whose device may not keep the host's order; see the module's head.

    Args:
        version: of NCCL.
        implicit: what `VARIABLE` is set to.
        scheme: by which checkpoints travel.

    Raises:
        ValueError: it may.
    """
    if scheme == "blocking":
        return
    needs = "choose --send cpu, or --scheme blocking, under which training waits for checkpoints"
    if version[:2] < _FIRST_VERSION:
        raise ValueError(
            f"send is nccl, and NCCL {'.'.join(map(str, version))} keeps no order of launches "
            f"between communicators (2.26 does): {needs}"
        )
    if implicit != "1":
        raise ValueError(f"send is nccl, and {VARIABLE} is not set to 1: {needs}")
    sys.stderr.write(
        f"castor: checkpoints are sent by NCCL under scheme {scheme}, launched in one order with "
        "training's collectives: no run on a GPU has tried that yet\n"
    )
