"""A checkpoint is one moment: what is copied beside training, and the proof that it stood still.

Three kinds of sections. What anybody may change at any time (buffers) is cloned at the moment
itself. What only the hooked optimizer step changes is copied beside the next iteration; its
versions and a sample of its elements are compared afterwards. What should stand still but need not
(frozen parameters, tensors beside the optimizer's) is digested after each copy: while digests stay
the same nothing has moved since the copy before. Such a section is watched closely for the first
few moments, whose copies training waits for; one that moves is cloned from then on.

A section that changed although it was copied beside training makes its copy worthless: the
checkpoint is left out on every rank, and the section is cloned from then on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import xxhash

from castor_runtime.state.sections import Section

_SETTLING_MOMENTS = 3
"""Copies that training waits for: a section that moves in every second iteration is found."""
_SAMPLES = 128
_PIECE_WORDS = 4 << 20
"""Words that are weighed at once on a device: bounds what a digest takes there to 32 MiB."""


_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""A dtype by its size: two NaN are the same bits, and not equal."""


class _Probe:
    """Some elements of a tensor, as bits: versions do not see what is written through `.data`."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.address = tensor.data_ptr()
        self.elements = tensor.numel()
        flat = tensor.detach()
        while flat.dim() > 1:  # always a view of the tensor's memory
            flat = flat.view(-1) if flat.is_contiguous() else flat.select(-1, 0)
        bits = _BITS.get(flat.element_size())
        flat = flat.view(-1) if flat.dim() == 0 else flat
        self.some = flat[:: max(1, flat.numel() // _SAMPLES)]
        if bits is not None:
            self.some = self.some.view(bits)

    def is_of(self, tensor: torch.Tensor) -> bool:
        """Whether it looks at this tensor's memory."""
        return tensor.data_ptr() == self.address and tensor.numel() == self.elements


@dataclass(frozen=True, slots=True)
class _Sight:
    """What a tensor looked like; not all of it."""

    probe: _Probe
    version: int
    sample: torch.Tensor

    def is_still(self, tensor: torch.Tensor) -> bool:
        """Whether it looks the same."""
        return (
            self.probe.is_of(tensor)
            and _version(tensor) == self.version
            and torch.equal(self.probe.some, self.sample)
        )


class Moment:
    """The live state at one moment, for the thread that copies it.

    Attributes:
        live: a tensor for each section; None where it does not exist yet.
        settling: training must wait until `torn` has been asked.
    """

    def __init__(
        self,
        moments: Moments,
        live: Sequence[torch.Tensor | None],
        seen: Sequence[tuple[str, torch.Tensor, _Sight]],
        watched: Sequence[tuple[str, torch.Tensor]],
        *,
        settling: bool,
    ) -> None:
        self.live = live
        self.settling = settling
        self._moments = moments
        self._seen = seen
        self._watched = watched

    def torn(self) -> tuple[str, ...]:
        """Return the sections that changed since the moment; ask once, when all is copied."""
        changed = [name for name, tensor, sight in self._seen if not sight.is_still(tensor)]
        digests = tensor_digests([tensor for _, tensor in self._watched])
        moved = self._moments.compare(
            {name: digest for (name, _), digest in zip(self._watched, digests, strict=True)}
        )
        torn = changed if self.settling else [*changed, *moved]
        self._moments.clone_from_now_on([*changed, *moved])
        return tuple(torn)


class Moments:
    """Knows of each section how it is to be captured.

    Args:
        sections: of the part.
        clone_at_capture: names of those that anybody may change at any time.
        trained: names of those that only the hooked optimizer step changes.
    """

    def __init__(
        self, sections: Sequence[Section], clone_at_capture: Iterable[str], trained: Iterable[str]
    ) -> None:
        self._sections = sections
        self._cloned = set(clone_at_capture)
        self._trained = frozenset(trained)
        self._digests: dict[str, int] = {}
        self._probes: dict[str, _Probe] = {}
        self._settled = 0

    @property
    def is_settling(self) -> bool:
        """Whether the next moment is one of the first few; ranks that take as many say the same."""
        return self._settled < _SETTLING_MOMENTS

    def take(self, live: Sequence[torch.Tensor | None]) -> Moment:
        """Return the state of now. Copies nothing but what may change before the next update."""
        held: list[torch.Tensor | None] = []
        seen: list[tuple[str, torch.Tensor, _Sight]] = []
        watched: list[tuple[str, torch.Tensor]] = []
        for section, tensor in zip(self._sections, live, strict=True):
            if tensor is not None and section.name in self._cloned:
                held.append(tensor.detach().clone())
                continue
            held.append(tensor)
            if tensor is None or tensor.numel() == 0:
                continue
            if section.name in self._trained:
                seen.append((section.name, tensor, self._sight(section.name, tensor)))
            else:
                watched.append((section.name, tensor))
        settling = bool(watched) and self.is_settling
        return Moment(self, held, seen, watched, settling=settling)

    def _sight(self, name: str, tensor: torch.Tensor) -> _Sight:
        probe = self._probes.get(name)
        if probe is None or not probe.is_of(tensor):
            probe = self._probes[name] = _Probe(tensor)
        return _Sight(probe, _version(tensor), probe.some.clone())

    def compare(self, digests: dict[str, int]) -> list[str]:
        """Take the watched sections' digests; return those that have moved since the last time."""
        moved = [
            name for name, digest in digests.items() if self._digests.get(name, digest) != digest
        ]
        self._digests.update(digests)
        self._settled += 1
        return moved

    def clone_from_now_on(self, names: Iterable[str]) -> None:
        """Clone these sections at each moment that is still to come."""
        self._cloned.update(names)


def tensor_digests(tensors: Sequence[torch.Tensor]) -> list[int]:
    """Return 64 bits for each tensor that differ when its bytes do, but for chance.

    On the CPU at memory speed; elsewhere by the device itself, with one wait for all.
    """
    digests: list[int | torch.Tensor] = []
    for tensor in tensors:
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        if raw.device.type == "cpu":
            digests.append(xxhash.xxh3_64_intdigest(raw.numpy().data))
        else:
            digests.append(weighed(raw))
    on_device = [digest for digest in digests if isinstance(digest, torch.Tensor)]
    found = iter(torch.stack(on_device).tolist() if on_device else ())
    return [next(found) if isinstance(d, torch.Tensor) else d for d in digests]


def weighed(raw: torch.Tensor) -> torch.Tensor:
    """Return the sum of a device's bytes, eight at a time, each word by an odd weight of its own.

    Args:
        raw: flat, uint8.
    """
    whole = raw.numel() // 8 * 8
    words = raw[:whole]
    words = (words if words.storage_offset() % 8 == 0 else words.clone()).view(torch.int64)
    total = torch.zeros((), dtype=torch.int64, device=raw.device)
    for start in range(0, words.numel(), _PIECE_WORDS):
        piece = words[start : start + _PIECE_WORDS]
        weights = torch.arange(start, start + piece.numel(), device=raw.device)
        # Odd, so that no change of a single word is lost; scattered, so that swaps are not either.
        total += weights.mul_(0x9E3779B97F4A7C15 - (1 << 64)).bitwise_or_(1).mul_(piece).sum()
    for index in range(whole, raw.numel()):
        total = total * 257 + raw[index]
    return total


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
