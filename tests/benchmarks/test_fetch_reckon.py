"""The reckoned times of docs/recovery.md follow from what was measured, by a rule seen here."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

_SPEC = importlib.util.spec_from_file_location("reckon", ROOT / "benchmarks/fetch/reckon.py")
assert _SPEC is not None
assert _SPEC.loader is not None
reckon = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = reckon
_SPEC.loader.exec_module(reckon)


def test_the_page_says_what_the_measured_pieces_make() -> None:
    measured = json.loads((ROOT / "docs/results/fetch.json").read_text())
    assert reckon.text(measured) in (ROOT / "docs/recovery.md").read_text()


@pytest.mark.parametrize(
    ("link", "holders", "rate", "binds"),
    [
        (10.0, 1, 10.0, "its link"),
        (10.0, 2, 10.0, "its link"),
        (50.0, 1, 12.0, "holders' turns"),  # 4 turns of 3 GB/s
        (50.0, 2, 24.0, "holders' turns"),
        (500.0, 3, 36.0, "holders' turns"),
        (500.0, 9, 96 * 1.0, "its 96 threads that receive"),  # no more than cores
    ],
)
def test_the_slowest_of_three_binds(link: float, holders: int, rate: float, binds: str) -> None:
    pieces = reckon.Pieces(receive=1.0, send=3.0, threads=16, turns=4)
    if holders < 3:
        pieces = reckon.Pieces(receive=2.0, send=3.0, threads=16, turns=4)
    assert reckon.reckoned(pieces, link, holders) == (rate, binds)
