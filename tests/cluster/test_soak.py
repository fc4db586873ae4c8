"""The first 4 seeds of `make soak`: random faults on real processes, and the right final state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from castor_lab.soak.campaign import RANKS, run_seed

pytestmark = pytest.mark.long

ITERATIONS = 20


@pytest.mark.parametrize("seed", range(4))
def test_a_random_schedule_of_faults(
    seed: int, tmp_path: Path, program: tuple[str, ...], baseline: Any
) -> None:
    sha256 = baseline(RANKS, ITERATIONS)
    verdict = run_seed(seed, tmp_path / "seed", program, ITERATIONS, sha256)
    assert verdict.wrong == (), verdict
