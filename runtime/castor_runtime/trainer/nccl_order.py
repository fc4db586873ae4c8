"""Whether checkpoints may be sent by NCCL: its launches beside training's, from a second thread.

NCCL asks that operations of different communicators are launched in one order on all devices; else
they can wait for each other in a circle. Castor's rounds are posted by a thread of their own when a
span begins, which is no point of the program that all ranks pass in one order with training's
collectives. Two things are therefore asked for:

- NCCL that keeps the order in which a process launched them (`NCCL_LAUNCH_ORDER_IMPLICIT`, since
  2.26): no order of streams and kernels on one device can then differ from the host's. It does not
  make the hosts' orders the same on all ranks.
- or the scheme "blocking", under which training waits for each checkpoint: the training thread
  launches nothing while a round is under way, and the order is the same everywhere.

So "blocking" is safe by its order, and every other scheme is not proved so.
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
    """Refuse NCCL where it cannot send, or where it keeps no order of launches.

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
    """Refuse an NCCL that may launch in another order than the process did; see the module's head.

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
        f"castor: checkpoints are sent by NCCL under scheme {scheme}: that this cannot hang beside "
        "training's own collectives is not proved\n"
    )
