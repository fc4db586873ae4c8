"""What the explored code is made of where it can be broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from castor_policy.agents.messages import RootWrite
from castor_policy.agents.store_writes import root_write
from castor_policy.checkpoint_memory import buffer_to_write, offered
from castor_policy.store import Txn
from castor_sim.explore.checkpoint_model import ChooseBuffer, Offered

WriteAsRoot: TypeAlias = Callable[[str, str, RootWrite], Txn]


@dataclass(frozen=True, slots=True)
class Variant:
    """The policy's own functions, or others in their place.

    Attributes:
        name: "right", or what is broken.
        offered: which iterations of a replica may be offered.
        buffer_to_write: which buffer of a replica is written next.
        root_write: what a root sends to the store to write what it decided.
    """

    name: str = "right"
    offered: Offered = offered
    buffer_to_write: ChooseBuffer = buffer_to_write
    root_write: WriteAsRoot = root_write


RIGHT = Variant()
"""The code as it runs in production."""
