"""What ranks have learned and loaded, told to each other: whole processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long

PROGRAM = Path(__file__).parent / "agreements_program.py"
SIZE = 3
WITH_COPY = {
    "link": {"alpha_ns": 2000, "bandwidth_bps": 10**9},
    "copy_link": {"alpha_ns": 1000, "bandwidth_bps": 5 * 10**9},
    "spans_ns": [10, 20, 30],
}
WITHOUT = {
    "link": {"alpha_ns": 3000, "bandwidth_bps": 2 * 10**9},
    "copy_link": None,
    "spans_ns": [],
}


LOADED = {"count of iterations": 5, "loss_scaler": {"cur_scale": 4096.0}}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    """What each rank says of each case."""
    folder = tmp_path_factory.mktemp("agreements")
    cases = {
        "learned": {
            "nobody": [None, None, None],
            "the last": [None, None, WITH_COPY],
            "all but the first": [None, WITHOUT, WITHOUT],
            "all": [WITH_COPY] * SIZE,
        },
        "loaded": {
            "the same": [LOADED] * SIZE,
            "another scale": [LOADED, LOADED, LOADED | {"loss_scaler": {"cur_scale": 2048.0}}],
            "another iteration": [LOADED | {"count of iterations": 4}, LOADED, LOADED],
        },
    }
    (folder / "cases.json").write_text(json.dumps(cases))
    subprocess.run([sys.executable, str(PROGRAM), str(folder)], check=True, timeout=120)
    return [json.loads((folder / str(rank)).read_text()) for rank in range(SIZE)]


def test_all_know_what_any_has_learned(said: list[dict[str, dict[str, Any]]]) -> None:
    agreed = {
        "nobody": None,
        "the last": WITH_COPY,
        "all but the first": WITHOUT,
        "all": WITH_COPY,
    }
    assert [one["learned"] for one in said] == [agreed] * SIZE


def test_ranks_that_have_loaded_different_states_say_so(
    said: list[dict[str, dict[str, Any]]],
) -> None:
    wrong = "than rank 0: training together would be wrong"
    complaints = {
        "the same": "",
        "another scale": f"ranks [2] have loaded another loss_scaler {wrong}",
        "another iteration": f"ranks [1, 2] have loaded another count of iterations {wrong}",
    }
    assert [one["loaded"] for one in said] == [complaints] * SIZE
