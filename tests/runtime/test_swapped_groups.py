"""A rank stands still, and a spare that was built before takes its place: whole processes."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch._C._distributed_c10d import TCPStore

pytestmark = pytest.mark.long

PROGRAM = Path(__file__).parent / "groups_program.py"


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each rank saw, and the spare; see the program."""
    folder = tmp_path_factory.mktemp("groups")
    store = TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=120))

    line = [sys.executable, str(PROGRAM), str(store.port), str(folder)]
    subprocess.run(line, check=True, timeout=250)
    return {name: json.loads((folder / name).read_text()) for name in ("0", "1", "2", "spare")}


def expected(rank: int) -> dict[str, Any]:
    return {
        "rank": rank,
        "size": 3,
        "backends": ["gloo"] * 3,
        "objects": [{"rank": 0}, {"rank": 1}, {"rank": 2}],
        "flat": [0, 1, 2],
        "scattered": 3.0 * rank,
        "gathered": [0.0, 1.0, 2.0],
        "functional": 3.0,
        "in groups": [
            [rank, 2, 11.0] if rank < 2 else None,
            [0, 1, 100.0] if rank == 2 else None,
            [rank, 3, 111.0],
        ],
    }


def test_a_script_gets_groups_that_do_what_gloo_does(said: dict[str, Any]) -> None:
    for rank in range(3):
        assert said[str(rank)]["first"] == expected(rank)


def test_who_waits_for_a_rank_that_stands_still_is_told(said: dict[str, Any]) -> None:
    for rank in ("0", "2"):
        assert said[rank]["wait"].startswith("LostRankError")
        assert said[rank]["call"].startswith("LostRankError")
        assert said[rank]["counted"] == [0, 0]
        assert said[rank]["handle"].startswith("LostRankError")


def test_the_spare_has_its_place_in_every_group(said: dict[str, Any]) -> None:
    assert said["spare"]["alone"] == [3.0, 3]
    assert said["0"]["second"] == expected(0)
    assert said["spare"]["second"] == expected(1)
    assert said["2"]["second"] == expected(2)


def test_a_spare_takes_no_place_whose_groups_it_did_not_make(said: dict[str, Any]) -> None:
    assert "of the group of ranks 0, 1 only one of the two is" in said["spare"]["as rank 2"]


def test_the_rank_that_stood_still_comes_too_late(said: dict[str, Any]) -> None:
    assert said["1"]["woken"].startswith("LostRankError")
    assert "it cannot be connected in generation 1" in said["1"]["older"]
