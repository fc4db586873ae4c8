"""Where each tensor of a rank lies in its part of the checkpoint.

A part is one run of bytes; a section is a tensor in it, as it stands in memory, without any header.
Every section starts at a multiple of `ALIGNMENT` bytes, so that any dtype can be viewed in place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Protocol

import torch

ALIGNMENT = 64
LAYOUT_VERSION = 1
"""Goes up when parts of earlier versions can no longer be read."""


@dataclass(frozen=True, slots=True)
class Section:
    """One tensor's place.

    Attributes:
        name: "fp32/0", "exp_avg/0", "buffer/<module's name>", "frozen/<parameter's name>", or the
            name that a `TensorState` gave it.
        offset: bytes from the part's start.
        dtype: torch's name of it, "float32".
        shape: of the tensor.
    """

    name: str
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    @property
    def size_bytes(self) -> int:
        """Bytes that the tensor takes."""
        return prod(self.shape) * self.torch_dtype.itemsize

    def view(self, part: torch.Tensor) -> torch.Tensor:
        """Return the section of `part` (flat, uint8) as a tensor that shares its memory."""
        raw = part[self.offset : self.offset + self.size_bytes]
        return raw.view(self.torch_dtype).view(self.shape)


def lay_out(
    tensors: Iterable[tuple[str, torch.dtype, Sequence[int]]],
) -> tuple[Section, ...]:
    """Return the sections of the named tensors, in the given order.

    Raises:
        ValueError: two have the same name.
    """
    sections: list[Section] = []
    names: set[str] = set()
    offset = 0
    for name, dtype, shape in tensors:
        if name in names:
            raise ValueError(f"two tensors are called {name!r}: give each its own name")
        names.add(name)
        section = Section(name, offset, str(dtype).removeprefix("torch."), tuple(shape))
        sections.append(section)
        offset += _aligned(section.size_bytes)
    return tuple(sections)


def part_bytes(sections: Sequence[Section]) -> int:
    """Return how many bytes the part takes; never 0, so that it can be mapped."""
    ends = [section.offset + _aligned(section.size_bytes) for section in sections]
    return max(ALIGNMENT, *ends, 0)


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


def copy_section(section: Section, part: torch.Tensor, live: torch.Tensor | None) -> None:
    """Copy a live tensor into its section; one that does not exist yet is written as zeros."""
    if live is None:
        section.view(part).zero_()
    else:
        section.view(part).copy_(live.detach())


class Sections(Protocol):
    """What live state is loaded from: a part's sections, by name.

    They may be damaged, and may be found to be so as late as when they are read; `check` has been
    called and has returned before anything is done that cannot be done a second time.
    """

    def __contains__(self, name: str, /) -> bool:
        """Whether there is such a section."""
        ...

    def __getitem__(self, name: str, /) -> torch.Tensor:
        """Return a section, on the CPU, for reading only.

        Raises:
            DamagedError: it is not whole.
        """
        ...

    def copy(self, name: str, live: torch.Tensor) -> None:
        """Set a live tensor of the section's dtype and shape to it.

        Raises:
            DamagedError: it is not whole; the live tensor may hold any of it.
        """
        ...

    def check(self) -> None:
        """Look at what nobody has read, and wait for copies that are still under way.

        Raises:
            DamagedError: not all is whole.
        """
        ...


class WholeSections:
    """Sections that are known to be whole, such as those of files that were checked before."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    @classmethod
    def of(cls, part: torch.Tensor, sections: Sequence[Section]) -> WholeSections:
        """Return those of a part (flat, uint8), without copying."""
        return cls({section.name: section.view(part) for section in sections})

    def __contains__(self, name: str) -> bool:
        """Whether there is such a section."""
        return name in self._tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return a section."""
        return self._tensors[name]

    def copy(self, name: str, live: torch.Tensor) -> None:
        """Set a live tensor to a section."""
        live.copy_(self._tensors[name])

    def check(self) -> None:
        """Do nothing."""


def sections_digest(sections: Sequence[Section]) -> bytes:
    """Return 16 bytes that differ when the sections do; the ranks' digests make the fingerprint."""
    text = json.dumps([LAYOUT_VERSION, [asdict(section) for section in sections]])
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def fingerprint(
    digests: Sequence[bytes], ranks_per_machine: int, replicas: Sequence[Sequence[int]]
) -> str:
    """Return what binds checkpoints to a topology and a layout, as 32 hex digits.

    Args:
        digests: `sections_digest` of every rank, in rank order.
        ranks_per_machine: R.
        replicas: the placement.
    """
    topology = [LAYOUT_VERSION, len(digests), ranks_per_machine, [list(row) for row in replicas]]
    state = hashlib.blake2b(json.dumps(topology).encode(), digest_size=16)
    for digest in digests:
        state.update(digest)
    return state.hexdigest()
