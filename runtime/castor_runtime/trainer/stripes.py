"""How a piece is divided among connections: by its size alone, so that both ends do the same."""

from __future__ import annotations

import torch

STRIPE_BYTES = 1 << 20
"""Least size of a stripe: below it another message costs more than a second core saves."""

_PAGE_BYTES = 4096
_STREAMS = 4
"""Connections of a machine to another one, at least, each with a thread a direction: to send and
receive 100 Gbit/s at once takes 6 to 8 cores (benchmarks/send). NCCL's guide advises as many helper
threads for its own sockets there."""


def streams_each(ranks_per_machine: int, cores: int) -> int:
    """Return how many connections a rank has to each peer, >= 1.

    Args:
        ranks_per_machine: who share the machine's link and its cores.
        cores: that they may run on. Training's threads have half of them to themselves.
    """
    wanted = -(-_STREAMS // ranks_per_machine)
    return max(1, min(wanted, cores // 2 // ranks_per_machine))


def striped(piece: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Return the piece in at most `count` parts, in its order."""
    size = piece.numel()
    parts = max(1, min(count, size // STRIPE_BYTES))
    each = -(-size // parts)
    each = -(-each // _PAGE_BYTES) * _PAGE_BYTES if parts > 1 else each
    return [piece[index * each : min((index + 1) * each, size)] for index in range(parts)]
