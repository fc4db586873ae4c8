"""Buffers that appear, change and go away while a module trains come back as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from castor_runtime.state.meta import decode, encode
from castor_runtime.state.module_buffers import ModuleBuffers
from castor_runtime.state.sections import WholeSections, copy_section, lay_out, part_bytes

CPU = torch.device("cpu")


class Inner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("late", None)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("hidden", torch.ones(2, dtype=torch.int64), persistent=False)


class Outer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("tied", self.inner.mean)


def change_nothing(module: Any) -> None:
    module.count += 4
    module.inner.mean.mul_(2).add_(1)


def make_a_late_one(module: Any) -> None:
    module.inner.late = torch.arange(5, dtype=torch.bfloat16)


def register_a_new_one(module: Any) -> None:
    module.inner.register_buffer("cache", torch.ones(2, 2), persistent=False)


def grow(module: Any) -> None:
    module.inner.hidden = torch.arange(7)


def change_the_dtype(module: Any) -> None:
    module.count = torch.tensor(7, dtype=torch.int32)


def drop(module: Any) -> None:
    module.count = None


def delete(module: Any) -> None:
    del module.count


def untie(module: Any) -> None:
    module.tied = module.tied + 1


def tie(module: Any) -> None:
    module.inner.late = module.count


CHANGES = [
    change_nothing,
    make_a_late_one,
    register_a_new_one,
    grow,
    change_the_dtype,
    drop,
    delete,
    untie,
    tie,
]


def described(module: torch.nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, buffer in module.named_buffers(remove_duplicate=False):
        ties = [n for n, b in module.named_buffers(remove_duplicate=False) if b is buffer]
        found[name] = (buffer.dtype, buffer.tolist(), ties)
    declared = {
        f"{prefix}.{leaf}": leaf in owner._non_persistent_buffers_set
        for prefix, owner in module.named_modules()
        for leaf in owner._buffers
    }
    return found | {"declared": declared}


@pytest.mark.parametrize("change", CHANGES)
def test_a_fresh_module_gets_the_buffers_of_the_moment(change: Callable[[Any], None]) -> None:
    module = Outer()
    buffers = ModuleBuffers(module, CPU)
    sections = lay_out(buffers.tensors())
    change_nothing(module)
    change(module)
    part = torch.zeros(part_bytes(sections), dtype=torch.uint8)
    for section, tensor in zip(sections, buffers.live(), strict=True):
        copy_section(section, part, tensor)
    small = decode(encode(buffers.small()))
    assert bool(small) == (change is not change_nothing)
    fresh = Outer()
    restored = ModuleBuffers(fresh, CPU)
    assert lay_out(restored.tensors()) == sections
    restored.restore(small, WholeSections.of(part, sections))
    assert described(fresh) == described(module)
    # What came back departs from the plan as what was saved did: the next checkpoint holds it.
    assert encode(restored.small()) == encode(buffers.small())


def test_what_a_fresh_process_has_no_place_for_is_named() -> None:
    module = Outer()
    buffers = ModuleBuffers(module, CPU)
    module.inner.add_module("later", torch.nn.BatchNorm1d(3, affine=False))
    with pytest.raises(ValueError, match=r"buffer inner\.later\.running_mean belongs to a module"):
        buffers.small()
    del module.inner.later
    module.inner.scale = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"parameter inner\.scale was added after deepspeed"):
        buffers.small()
