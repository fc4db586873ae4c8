"""Sections are loaded and checked in one pass; nothing damaged passes, wherever it lies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from castor_runtime.arena import PartLayout, Replica, SegmentOwner, Snapshot
from castor_runtime.state.protocol import DamagedError
from castor_runtime.state.sections import Section, copy_section, lay_out, part_bytes
from castor_runtime.trainer import checked_sections
from castor_runtime.trainer.checked_sections import CheckedSections

OWNER = SegmentOwner("job", "0123456789abcdef", "agent", bytes(16))
DTYPES = (torch.float32, torch.bfloat16, torch.uint8, torch.float64)


@contextmanager
def complete(
    sections: tuple[Section, ...], chunk_bytes: int, fill: int
) -> Iterator[tuple[Snapshot, torch.Tensor]]:
    """Yield a complete buffer of random bytes, and a copy of them."""
    with TemporaryDirectory() as folder:
        part = PartLayout(0, part_bytes(sections), 64, chunk_bytes, 1)
        replica = Replica.create("held", OWNER, part, folder=Path(folder))
        random = torch.Generator().manual_seed(fill)
        content = torch.randint(0, 256, (part.data_bytes,), dtype=torch.uint8, generator=random)
        writing = replica.begin(1, 1, None)
        torch.frombuffer(writing.data, dtype=torch.uint8).copy_(content)
        writing.commit(b"meta")
        yield replica.snapshot(1), content


@st.composite
def laid_out(draw: st.DrawFn) -> tuple[Section, ...]:
    sizes = draw(st.lists(st.integers(0, 300), min_size=1, max_size=6))
    dtypes = draw(st.lists(st.sampled_from(DTYPES), min_size=len(sizes), max_size=len(sizes)))
    kinds = zip(sizes, dtypes, strict=True)
    return lay_out([(f"x/{i}", dtype, (size,)) for i, (size, dtype) in enumerate(kinds)])


def load(
    sections: tuple[Section, ...], held: CheckedSections, order: list[int], strides: list[bool]
) -> dict[str, torch.Tensor]:
    """Copy some sections, in some order, some into tensors that are not contiguous; check all."""
    found: dict[str, torch.Tensor] = {}
    for index in order:
        section = sections[index]
        stride = 2 if strides[index] else 1
        live = torch.zeros(section.shape[0] * stride, dtype=section.torch_dtype)[::stride]
        held.copy(section.name, live)
        found[section.name] = live
    held.check()
    return found


@given(laid_out(), st.data(), st.sampled_from((64, 128, 512)), st.sampled_from((16, 48, 1024)))
def test_what_is_whole_arrives_and_what_is_damaged_never_passes(
    sections: tuple[Section, ...], data: st.DataObject, chunk_bytes: int, block_bytes: int
) -> None:
    names = list(range(len(sections)))
    order = data.draw(st.permutations(names).map(lambda o: o[: len(o) // 2 + 1]))
    strides = data.draw(st.lists(st.booleans(), min_size=len(names), max_size=len(names)))
    with (
        pytest.MonkeyPatch.context() as patch,
        complete(sections, chunk_bytes, fill=len(names)) as (snapshot, content),
    ):
        patch.setattr(checked_sections, "_BLOCK_BYTES", block_bytes)
        found = load(sections, CheckedSections(snapshot, sections), order, strides)
        back = content.clone()
        for section in sections:
            if section.name in found:
                section.view(back).zero_()
                copy_section(section, back, found[section.name])
        assert torch.equal(back, content)
        at = data.draw(st.integers(0, snapshot.data.nbytes - 1))
        snapshot.data[at] ^= 1 << data.draw(st.integers(0, 7))
        with pytest.raises(DamagedError, match=f"chunk {at // chunk_bytes} of iteration 1"):
            load(sections, CheckedSections(snapshot, sections), order, strides)


def test_a_section_that_is_looked_at_is_whole() -> None:
    sections = lay_out([("a", torch.float32, (50,)), ("b", torch.float32, (50,))])
    with complete(sections, 64, fill=1) as (snapshot, content):
        snapshot.data[sections[1].offset] ^= 1
        held = CheckedSections(snapshot, sections)
        assert "a" in held
        assert "c" not in held
        assert torch.equal(held["a"].view(torch.uint8), sections[0].view(content).view(torch.uint8))
        with pytest.raises(DamagedError):
            held["b"]


def test_a_chunk_of_many_blocks_is_read_in_order() -> None:
    sections = lay_out([("a", torch.float32, (1_100_003,)), ("b", torch.uint8, (5,))])
    with complete(sections, 3 << 20, fill=2) as (snapshot, content):
        held = CheckedSections(snapshot, sections)
        live = torch.zeros(1_100_003)
        held.copy("a", live)
        held.check()
        assert torch.equal(live.view(torch.uint8), sections[0].view(content).view(torch.uint8))
