"""Three faults in the protocol, made on purpose: exploring must find each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from castor_policy.agents.messages import RootWrite
from castor_policy.agents.store_writes import root_write
from castor_policy.checkpoint_memory import BufferHeader, BufferState
from castor_policy.store import Txn
from castor_sim.explore.variant import RIGHT, Variant


def _unfenced(job: str, agent: str, write: RootWrite) -> Txn:
    """Write, whoever is root now."""
    return Txn((), root_write(job, agent, write).operations)


def _offered_while_written(headers: Sequence[BufferHeader]) -> frozenset[int]:
    """Offer what has begun to arrive as if it had."""
    there = (BufferState.WRITING, BufferState.COMPLETE)
    return frozenset(header.iteration for header in headers if header.state in there)


def _first_buffer(_headers: Sequence[BufferHeader], _agreed: int | None) -> int:
    """Write over the newest complete iteration before the next one is whole everywhere."""
    return 0


BROKEN: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        replace(RIGHT, name="root-without-fencing", root_write=_unfenced),
        replace(RIGHT, name="offer-before-complete", offered=_offered_while_written),
        replace(RIGHT, name="buffer-reused-early", buffer_to_write=_first_buffer),
    )
}
"""The broken variants by name."""
