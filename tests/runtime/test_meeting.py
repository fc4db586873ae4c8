"""The place where a generation's trainers meet, and who waits there for whom."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from castor_runtime.ports import ANY_PORT
from castor_runtime.trainer import meeting
from castor_runtime.trainer.meeting import meet

TIMEOUT = timedelta(seconds=30)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> str:
    """One at which nobody listens yet."""
    monkeypatch.setattr(meeting, "_SLICE_S", 0.1)
    with ANY_PORT.bind("127.0.0.1") as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_whoever_waits_for_the_first_rank_gives_up_when_its_generation_is_over(place: str) -> None:
    asked: list[int] = []

    def gives_up() -> bool:
        asked.append(0)
        return len(asked) == 2

    with pytest.raises((dist.DistNetworkError, dist.DistStoreError)):
        meet(place, 1, 2, TIMEOUT, gives_up)
    assert len(asked) == 2


def test_whoever_comes_before_the_first_rank_meets_it_when_it_comes(place: str) -> None:
    first: list[Any] = []

    def comes() -> bool:
        first.append(meet(place, 0, 2, TIMEOUT))
        return False

    met = meet(place, 1, 2, TIMEOUT, comes)
    first[0].set("said", "hello")
    assert met.get("said") == b"hello"
    # Only the wait for a first rank is short.
    assert met.timeout == TIMEOUT
