"""What all ranks of a job tell each other of themselves, over their control group."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from castor_runtime.state.sections import Section, fingerprint, sections_digest
from castor_runtime.trainer.agent_link import TrainerSettings


def agree_on_fingerprint(
    settings: TrainerSettings, sections: Sequence[Section], control: dist.ProcessGroup
) -> str:
    """Return what all ranks' parts look like, in a digest.

    Args:
        settings: of the trainer.
        sections: of this rank's part.
        control: a gloo group of all ranks.

    Raises:
        ValueError: not every rank trains.
    """
    world = dist.get_world_size(control)
    expected = len(settings.replicas) * settings.ranks_per_machine
    if world != expected:
        raise ValueError(f"{world} ranks train, but Castor started {expected}: use them all")
    return fingerprint(
        _of_all(sections_digest(sections), control), settings.ranks_per_machine, settings.replicas
    )


def agree_on_attempt(names: Sequence[bytes], most: int, control: dist.ProcessGroup) -> bytes | None:
    """Return the first of rank 0's names that every rank has; None: there is none.

    Args:
        names: of this rank, 16 bytes each.
        most: how many a rank may have.
        control: a gloo group of all ranks.
    """
    every = _of_all(b"".join(names).ljust(16 * most, b"\0"), control)
    held = [[one[16 * i : 16 * i + 16] for i in range(most)] for one in every]
    common = (name for name in held[0] if any(name) and all(name in one for one in held))
    return next(common, None)


def agree_on_sizes(size_bytes: int, control: dist.ProcessGroup) -> list[int]:
    """Return the sizes of all ranks' parts, by rank.

    Args:
        size_bytes: of this rank's.
        control: a gloo group of all ranks.
    """
    return [int.from_bytes(one, "big") for one in _of_all(size_bytes.to_bytes(8, "big"), control)]


def _of_all(said: bytes, control: dist.ProcessGroup) -> list[bytes]:
    mine = torch.frombuffer(bytearray(said), dtype=torch.uint8)
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size(control))]
    dist.all_gather(every, mine, control)
    return [one.numpy().tobytes() for one in every]
