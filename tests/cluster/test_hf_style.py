"""The example of a Hugging Face style loop: exact under kills, and nothing to be told of."""

from __future__ import annotations

from pathlib import Path

import pytest

from castor_lab.soak.trial import Trial, train

pytestmark = pytest.mark.long

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "hf_style.py"


def run(folder: Path, *options: str) -> Trial:
    trial = train(folder, ["--nodes", "2", "--lease", "3s", *options, str(EXAMPLE)])
    assert trial.code == 0, trial.output
    assert trial.processes_left == ()
    assert trial.memory_left == ()
    return trial


def test_an_hf_style_loop_is_exact_under_kills(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    # Within an epoch right after an evaluation, and in the iteration that spans two epochs.
    killed = run(tmp_path / "killed", "--kill", "rank:1@4", "--kill", "machine:0@9")
    assert whole.result["iterations"] == killed.result["iterations"] == 12
    assert len(killed.recoveries) == 2
    assert killed.sha256 == whole.sha256
    logs = [log.read_text() for log in (tmp_path / "whole").glob("agents/*/rank-*.log")]
    assert len(logs) == 2
    assert not any("UnheldStateWarning" in log for log in logs), logs
    assert sum("iteration 12: best loss" in log for log in logs) == 1
