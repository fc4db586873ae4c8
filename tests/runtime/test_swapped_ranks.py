"""DeepSpeed goes on in the same processes when a rank is killed: whole processes, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from torch._C._distributed_c10d import TCPStore

pytestmark = pytest.mark.long

PROGRAM = Path(__file__).parent / "swapped_ranks_program.py"


def test_spares_take_dead_ranks_places_and_the_end_is_that_of_no_death(tmp_path: Path) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=200))

    line = [sys.executable, str(PROGRAM), str(store.port), str(tmp_path)]
    subprocess.run(line, env=os.environ | {"DS_ACCELERATOR": "cpu"}, check=True, timeout=250)
    ranks, spares = json.loads((tmp_path / "pids").read_text())
    # Rank 1 died in the forward, rank 2 in the backward, and who was rank 1 then after the update.
    came_to = [json.loads((tmp_path / f"came-to-{rank}").read_text()) for rank in range(3)]
    assert [one["pid"] for one in came_to] == [ranks[0], spares[2], spares[1]]
    assert [set(one["ranks"]) for one in came_to] == [{0}, {1}, {2}]
    assert [len(one["swaps"]) for one in came_to] == [3, 1, 2]
    # The order of the modules goes along, and what is trained next agrees with it.
    assert [one["traced"] for one in came_to] == [[True] * 4, [True] * 2, [True] * 3]
    assert [any(map(any, one["padding"])) for one in came_to] == [False, False, True]
    for rank, one in enumerate(came_to):
        assert one["digest"] == store.get(f"undisturbed/{rank}").decode()
