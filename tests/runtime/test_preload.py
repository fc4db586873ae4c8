"""What is put off where trainers are forked from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from castor_runtime.agent.preload import compiled_when_called


def test_what_is_compiled_where_it_is_imported_is_compiled_when_it_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled = []

    def compile_it(model: Callable[[int], int], **options: Any) -> Callable[[int], int]:
        compiled.append((model.__name__, options))
        return lambda x: -model(x)

    monkeypatch.setattr(torch, "compile", compile_it)
    with compiled_when_called():

        @torch.compile
        def once(x: int) -> int:
            return x

        @torch.compile(dynamic=True)
        def twice(x: int) -> int:
            return 2 * x

    assert torch.compile is compile_it
    assert (once.__name__, compiled) == ("once", [])
    assert (twice(3), once(1), twice(4)) == (-6, -1, -8)
    assert compiled == [("twice", {"dynamic": True}), ("once", {})]
