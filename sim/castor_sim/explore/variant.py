"""What the explored code is made of where it can be broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from castor_policy.checkpoint_memory import buffer_to_write, offered
from castor_policy.store import Compare, Put, Txn
from castor_sim.explore.checkpoint_model import ChooseBuffer, Offered

Fenced: TypeAlias = Callable[[tuple[Compare, ...], Put], Txn]


def fenced(fence: tuple[Compare, ...], put: Put) -> Txn:
    """Return the root's write behind its fence."""
    return Txn(fence, (put,))


@dataclass(frozen=True, slots=True)
class Variant:
    """The policy's own functions, or others in their place.

    Attributes:
        name: "right", or what is broken.
        offered: which iterations of a replica may be offered.
        buffer_to_write: which buffer of a replica is written next.
        fenced: how the root's writes are fenced.
    """

    name: str = "right"
    offered: Offered = offered
    buffer_to_write: ChooseBuffer = buffer_to_write
    fenced: Fenced = fenced


RIGHT = Variant()
"""The code as it runs in production."""
