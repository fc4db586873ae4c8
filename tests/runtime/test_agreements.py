"""What ranks have learned of their network, told to those that are new: whole processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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


def test_all_know_what_any_has_learned(tmp_path: Path) -> None:
    cases = {
        "nobody": [None, None, None],
        "the last": [None, None, WITH_COPY],
        "all but the first": [None, WITHOUT, WITHOUT],
        "all": [WITH_COPY] * SIZE,
    }
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    subprocess.run([sys.executable, str(PROGRAM), str(tmp_path)], check=True, timeout=120)
    agreed = {
        "nobody": None,
        "the last": WITH_COPY,
        "all but the first": WITHOUT,
        "all": WITH_COPY,
    }
    for rank in range(SIZE):
        assert json.loads((tmp_path / str(rank)).read_text()) == agreed
