"""How fast parts come from another host, and what an iteration of training asks of that."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import xxhash

from castor_runtime.transport import PartMissingError, PeerClient
from castor_runtime.transport.parts import chunk_count, chunk_size

STEPS_BYTES: Final = (4 << 20, 32 << 20, 128 << 20)
"""A slow link is measured by the first; a fast one moves that before TCP has got going."""

ENOUGH_S: Final = 0.25

_CHUNK_BYTES: Final = 1 << 20
_FINGERPRINT: Final = bytes(16)


class ProbeSource:
    """Offers zeros of any size up to the largest of `STEPS_BYTES`; the iteration says which."""

    def open(self, rank: int, iteration: int) -> _Zeros:  # noqa: ARG002 - `PartSource` has it
        """See `PartSource.open`."""
        if not 0 <= iteration < len(STEPS_BYTES):
            raise PartMissingError(f"a doctor has no part of iteration {iteration}")
        return _Zeros(iteration)


class _Zeros:
    """A complete checkpoint of nothing (`ReadablePart`), which takes no memory."""

    meta = b""
    chunk_bytes = _CHUNK_BYTES
    fingerprint = _FINGERPRINT

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration
        size_bytes = STEPS_BYTES[iteration]
        self.data = memoryview(mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE, mmap.PROT_READ))
        lengths = [chunk_size(i, size_bytes, _CHUNK_BYTES) for i in range(self._chunks)]
        of = {length: xxhash.xxh3_64_intdigest(bytes(length)) for length in set(lengths)}
        self.digests: Sequence[int] = [of[length] for length in lengths]

    @property
    def _chunks(self) -> int:
        return chunk_count(STEPS_BYTES[self.iteration], _CHUNK_BYTES)


class _Discarded:
    """Takes a part in, which nobody wants (`WritablePart`)."""

    chunk_bytes = _CHUNK_BYTES
    meta_bytes = 0

    def __init__(self, size_bytes: int) -> None:
        self.data = memoryview(bytearray(size_bytes))

    def make_room(self, meta_bytes: int) -> None:
        """See `WritablePart.make_room`; there are none."""

    def commit(self, meta: bytes, digests: Sequence[int]) -> None:
        """See `WritablePart.commit`."""


async def rate_from(client: PeerClient, address: str) -> float:
    """Return at how many bytes a second parts come from a doctor's agents' port.

    Over connections like those of an agent that fetches a lost part: authenticated, every chunk
    verified. Collectives of training may be faster.

    Raises:
        PeerError: it cannot be asked, or refuses.
    """
    best = 0.0
    for step, size_bytes in enumerate(STEPS_BYTES):
        took = await client.fetch([address], 0, step, _FINGERPRINT, _Discarded(size_bytes))
        best = max(best, took.bytes / took.seconds)
        if took.seconds > ENOUGH_S:
            break
    return best


@dataclass(frozen=True, slots=True)
class IterationTraffic:
    """What one iteration brings to a host over the network, and takes from it as well.

    Attributes:
        training_bytes: of ZeRO-3's collectives.
        copies_bytes: of the other hosts' checkpoints.
    """

    training_bytes: float
    copies_bytes: float

    @classmethod
    def of(cls, state_bytes: int, machines: int, replicas: int) -> IterationTraffic:
        """Return it for a host whose trainers hold `state_bytes` of the model's state.

        Adam holds 12 bytes a parameter, so all hosts have machines · state / 12 parameters. ZeRO-3
        gathers them twice and reduces their gradients once, each in 2 bytes, and of each a host has
        a share already: 3 · 2 · parameters · (machines - 1) / machines. Each checkpoint brings the
        state of `replicas` - 1 other hosts.
        """
        return cls(state_bytes * (machines - 1) / 2, float(state_bytes * (replicas - 1)))

    @property
    def total_bytes(self) -> float:
        """Of both."""
        return self.training_bytes + self.copies_bytes
