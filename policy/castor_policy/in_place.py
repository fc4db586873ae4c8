"""Recovery without a restart, as far as both twins decide on it: whether, and with which spares.

Survivors keep their processes, and only the places of those that are lost are taken anew
(docs/recovery.md). Written in the subset of Python that the sweep engine compiles as it stands.
"""

from __future__ import annotations

SPARES_AFTER = 2
"""Warm spares are started once so many iterations of a generation have ended: the first ones are
slower, and watched."""


def goes_on_in_place(in_memory: bool, parked: int) -> bool:
    """Return whether a recovery restarts only what is lost.

    What is built without the others has to be loaded over: so memory has to serve.

    Args:
        in_memory: it loads from memory, own or a peer's.
        parked: trainers that have left their generation, and wait for the next one.
    """
    return in_memory and parked > 0
