"""Sends and receives over gloo, of which a single group cannot fill a fast link.

A gloo group has one thread that reads from its connections, and one core copies no more than it
copies (docs/runtime.md, "Sending from GPUs"). Over several groups a piece travels in as many
stripes, each by a thread and a connection of its own. None of these threads runs Python: what the
training thread computes meanwhile holds none of them up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

STRIPE_BYTES = 256 << 10
"""Least size of a stripe: below it another message costs more than a second core saves."""

_PAGE_BYTES = 4096

_STRIPES = 4
"""Of a machine, at least: a core copies 25 to 40 Gbit/s over TCP (benchmarks/send)."""

Groups = Sequence[dist.ProcessGroup | None]
"""Groups of the same ranks, used in this order; None: the default group."""


def stripes(ranks_per_machine: int, cores: int) -> int:
    """Return how many groups a rank's pieces are divided among, >= 1.

    Args:
        ranks_per_machine: who share the machine's link and its cores.
        cores: that they may run on. Training's threads have half of them to themselves.
    """
    wanted = -(-_STRIPES // ranks_per_machine)
    return max(1, min(wanted, cores // 2 // ranks_per_machine))


def post_gloo(
    groups: Groups,
    tag: int,
    outgoing: Sequence[tuple[int, torch.Tensor]],
    incoming: Sequence[tuple[int, torch.Tensor]],
) -> list[Any]:
    """Start sends and receives with those ranks; return what to wait for.

    Args:
        groups: gloo's; as many at the other ranks.
        tag: the same at sender and receiver.
        outgoing: rank and what is sent, flat, uint8.
        incoming: rank and where to, of the size that is sent.
    """
    works = [
        dist.irecv(stripe, rank, group, tag=tag)
        for rank, target in incoming
        for group, stripe in striped(groups, target)
    ]
    return works + [
        dist.isend(stripe, rank, group, tag=tag)
        for rank, source in outgoing
        for group, stripe in striped(groups, source)
    ]


def wait_all(works: Sequence[Any]) -> None:
    """Return when all of it was sent and received.

    Raises:
        RuntimeError: a peer is gone.
    """
    for work in works:
        if work is not None:
            work.wait()


def striped(
    groups: Groups, piece: torch.Tensor
) -> list[tuple[dist.ProcessGroup | None, torch.Tensor]]:
    """Divide a piece among the groups, by its size alone: sender and receiver do the same."""
    size = piece.numel()
    count = max(1, min(len(groups), size // STRIPE_BYTES))
    each = -(-size // count)
    each = -(-each // _PAGE_BYTES) * _PAGE_BYTES if count > 1 else each
    return [
        (groups[index], piece[index * each : min((index + 1) * each, size)])
        for index in range(count)
    ]
