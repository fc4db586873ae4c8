"""What goes to the holders with a part, its digests and metadata; what is received is checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
import xxhash

from castor_runtime.trainer.agent_link import TrainerSettings
from castor_runtime.trainer.checkpoint_steps import Replicas
from castor_runtime.trainer.device import post_gloo, wait_all
from castor_runtime.trainer.exchange import Digested, Part

_U64 = (1 << 64) - 1
_RECORD_HEAD = 3
"""Words of a record before the digests: size and digest of the meta, and whether it is torn."""


class ReplicationError(RuntimeError):
    """A checkpoint could not be completed: a peer is gone, or bytes arrived damaged."""


class Records:
    """Exchanges the records of one rank, checkpoint after checkpoint.

    Args:
        settings: of the trainer.
        control: a gloo group of all ranks that nothing else uses.
        replicas: where checkpoints lie on this machine.
    """

    def __init__(
        self, settings: TrainerSettings, control: dist.ProcessGroup, replicas: Replicas
    ) -> None:
        self._settings = settings
        self._control = control
        self._replicas = replicas

    def exchange(
        self, own: Digested, meta: bytes, parts: Mapping[int, Part], *, torn: bool
    ) -> dict[int, bytes | None]:
        """Send digests and meta to the holders; check those received.

        Args:
            own: the part that was sent, all of it digested.
            meta: of it; room is made for it.
            parts: what was received, by rank, likewise.
            torn: the own part is worth nothing.

        Returns:
            The metas received; None for a part that is to be left out.

        Raises:
            ReplicationError: a part arrived damaged.
        """
        record = _pack_record(own.digests, meta, torn=torn)
        metas = {
            rank: torch.empty(part.writing.chunks + _RECORD_HEAD, dtype=torch.int64)
            for rank, part in parts.items()
        }
        self._swap(0, record, metas)
        self._replicas.own.make_room(len(meta))
        for rank, table in metas.items():
            self._replicas.rooms.note(self._replicas.remote[rank], int(table[0]))
            parts[rank].writing.make_room(int(table[0]))
        bodies = {
            rank: torch.empty(int(table[0]), dtype=torch.uint8) for rank, table in metas.items()
        }
        self._swap(1, torch.frombuffer(bytearray(meta), dtype=torch.uint8), bodies)
        received: dict[int, bytes | None] = {}
        for rank, table in metas.items():
            words = [int(word) & _U64 for word in table]
            if words[2]:  # it changed while it was sent: nothing need match
                received[rank] = None
                continue
            body = bodies[rank].numpy().tobytes()
            if words[_RECORD_HEAD:] != parts[rank].digests or words[1] != xxhash.xxh3_64_intdigest(
                body
            ):
                raise ReplicationError(f"the part of rank {rank} arrived damaged")
            received[rank] = body
        return received

    def _swap(self, tag: int, outgoing: torch.Tensor, incoming: Mapping[int, torch.Tensor]) -> None:
        sends = [(rank, outgoing) for rank in self._settings.holders()]
        wait_all(post_gloo(self._control, tag, sends, list(incoming.items())))


def _pack_record(digests: Sequence[int], meta: bytes, *, torn: bool) -> torch.Tensor:
    words = [len(meta), xxhash.xxh3_64_intdigest(meta), int(torn), *digests]
    return torch.from_numpy(np.array(words, dtype=np.uint64).view(np.int64))
