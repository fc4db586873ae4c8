"""Measure the hop that checkpoints take: alpha and B of f(s) = alpha + s/B (Gemini sec. 5.3).

Rounds as real ones are: every rank sends a piece to each of its holders while it receives those of
its sources, `in_flight` of them at a time, over the group that checkpoints travel on. So a network
card that is shared by several ranks, or that is slower in both directions at once, is measured as
it will be used. It takes place while training is quiet, before a generation's first iteration.

One size is so small that it takes hardly more than alpha; the others follow the speed that the
first rounds show, up to what takes 20 ms.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from castor_policy.chunk_schedule import Link
from castor_policy.link_fit import fit_link
from castor_records.events.training import LinkMeasured
from castor_runtime.trainer.device import Post, wait_all

_FIRST_TAG = 1 << 20
"""Above those of real rounds."""
_SMALLEST_BYTES = 4 << 10
_FIRST_BYTES = 64 << 10
_LARGEST_BYTES = 4 << 20
_REPEATS = 3
_ROUND_NS = 20_000_000
"""About how long a round of the largest size shall take: 0.4 s for all, with four in flight."""


@dataclass(frozen=True, slots=True)
class LinkMeasurement:
    """What this rank measured, and what all ranks plan with.

    Attributes:
        link: the fit of this rank's times.
        agreed: the largest alpha and the smallest bandwidth of all ranks.
        sizes_bytes: of the pieces.
        times_ns: of a round with pieces of that size; the shortest of several.
    """

    link: Link
    agreed: Link
    sizes_bytes: tuple[int, ...]
    times_ns: tuple[int, ...]

    def to_event(self, *, generation: int, rank: int) -> LinkMeasured:
        """Return the event that tells of it."""
        return LinkMeasured(
            generation=generation,
            rank=rank,
            alpha_ns=self.link.alpha_ns,
            bandwidth_bps=self.link.bandwidth_bps,
            sizes_bytes=tuple(self.sizes_bytes),
            times_ns=tuple(self.times_ns),
            agreed_alpha_ns=self.agreed.alpha_ns,
            agreed_bandwidth_bps=self.agreed.bandwidth_bps,
        )


class LinkProbe:
    """One rank's part in a measurement; every rank makes one and calls `measure`.

    Args:
        post: by which checkpoints travel.
        control: a gloo group of all ranks.
        device: where the pieces lie that are sent.
        holders: ranks that this one sends to.
        sources: ranks that it receives from.
        in_flight: rounds that are under way at once, >= 1.
    """

    def __init__(
        self,
        *,
        post: Post,
        control: dist.ProcessGroup,
        device: torch.device,
        holders: Sequence[int],
        sources: Sequence[int],
        in_flight: int,
    ) -> None:
        self._send = post
        self._control = control
        self._device = device
        self._holders = holders
        self._sources = sources
        self._in_flight = in_flight
        self._tag = _FIRST_TAG

    def measure(self) -> LinkMeasurement:
        """Measure, fit, and agree.

        Raises:
            RuntimeError: a peer is gone.
        """
        self._rounds(_FIRST_BYTES)  # connections wake up, memory is touched
        first_ns = self._all_largest(self._rounds(_FIRST_BYTES))
        fitting = _FIRST_BYTES * _ROUND_NS // max(first_ns, 1)
        largest = max(4 * _FIRST_BYTES, min(fitting, _LARGEST_BYTES))
        sizes = [_SMALLEST_BYTES, largest // 4, largest // 2, largest]
        # The shortest: ranks leave a barrier one after the other, and whatever else disturbs a
        # round makes it longer too.
        times = [min(self._rounds(size) for _ in range(_REPEATS)) for size in sizes]
        link = fit_link(sizes, times)
        return LinkMeasurement(link, agree_on_link(link, self._control), tuple(sizes), tuple(times))

    def _rounds(self, size_bytes: int) -> int:
        """Return the time of a round of that size, of `in_flight` that are posted at once."""
        pieces = [self._buffers(size_bytes) for _ in range(self._in_flight)]
        dist.barrier(self._control)
        began_ns = time.monotonic_ns()
        works = [work for sends, receives in pieces for work in self._post(sends, receives)]
        wait_all(works)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return (time.monotonic_ns() - began_ns) // self._in_flight

    def _buffers(self, size_bytes: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        def some(count: int) -> list[torch.Tensor]:
            return [
                torch.zeros(size_bytes, dtype=torch.uint8, device=self._device)
                for _ in range(count)
            ]

        return some(len(self._holders)), some(len(self._sources))

    def _post(self, sends: Sequence[torch.Tensor], receives: Sequence[torch.Tensor]) -> list[Any]:
        self._tag += 1
        outgoing = list(zip(self._holders, sends, strict=True))
        incoming = list(zip(self._sources, receives, strict=True))
        return self._send(self._tag, outgoing, incoming)

    def _all_largest(self, value: int) -> int:
        shared = torch.tensor([value], dtype=torch.int64)
        dist.all_reduce(shared, dist.ReduceOp.MAX, self._control)
        return int(shared)


def agree_on_link(link: Link, control: dist.ProcessGroup) -> Link:
    """Return the largest alpha and the smallest bandwidth of all ranks.

    Raises:
        RuntimeError: a peer is gone.
    """
    shared = torch.tensor([link.alpha_ns, -link.bandwidth_bps], dtype=torch.int64)
    dist.all_reduce(shared, dist.ReduceOp.MAX, control)
    return Link(int(shared[0]), -int(shared[1]))
