"""A checkpoint is one moment and holds all of it: what moves, appears and grows comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from castor_lab.soak.trial import Trial, train

pytestmark = pytest.mark.long

PROGRAM = Path(__file__).with_name("moment_program.py")


def test_what_moves_appears_and_grows_comes_back(tmp_path: Path) -> None:
    def run(name: str, *faults: str) -> Trial:
        options = ["--nodes", "2", "--lease", "3s", *faults]
        trial = train(tmp_path / name, [*options, str(PROGRAM)])
        assert trial.code == 0, trial.output
        assert trial.result["iterations"] == 14
        assert trial.memory_left == ()
        return trial

    whole = run("whole")
    hit = run("hit", "--kill", "rank:1@4", "--kill", "machine:1@9")
    assert hit.sha256 == whole.sha256
    assert len(hit.recoveries) == 2
    assert all(recovery["iterations_lost"] <= 1 for recovery in hit.recoveries)
