"""A script that ends without a word, again and again: the job ends, and says whose end it was."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from castor_lab.soak.trial import plain, running
from castor_records.events.failures import TrainerStarted

pytestmark = pytest.mark.long

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "gpt2_tiny.py"
SMALL = ("--layers=1", "--hidden=32", "--sequence=32", "--batch=2")

# The iteration ends, its checkpoint does not: rank 1 leaves right after it was begun.
LEAVES = """
import os, runpy, sys, time, warnings
import castor

class Leaves(castor.Checkpointer):
    def __init__(self, engine, **options):
        super().__init__(engine, **options)
        self.engine = engine

    def step(self, *arguments, **options):
        time.sleep(0.6)
        super().step(*arguments, **options)
        if os.environ["RANK"] == "1" and self.engine.global_steps == 6:
            print("about to leave", flush=True)
            warnings.warn("it is of no matter", stacklevel=1)
            os._exit(1)

castor.Checkpointer = Leaves
sys.argv[0] = {example!r}
sys.path.insert(0, os.path.dirname({example!r}))
runpy.run_path({example!r}, run_name="__main__")
"""


def test_who_leaves_at_the_same_iteration_for_ever_is_named_and_ends_the_job(
    tmp_path: Path,
) -> None:
    """Case c04: an iteration that ended counted as progress, though its checkpoint had failed."""
    script = tmp_path / "leaves.py"
    script.write_text(LEAVES.format(example=str(EXAMPLE)))
    options = ["--nodes", "2", "--lease", "3s", "--max-attempts", "1"]
    arguments = [*options, str(script), "--iterations", "12", *SMALL]
    with running(tmp_path / "run", arguments) as run:
        trial = run.wait(200)
        assert trial.code == 1, trial.output
        assert trial.result["outcome"] == "failed"
        said = "rank 1 exited with code 1: about to leave"
        assert trial.result["reason"].endswith(f"completed no iteration: machine 1: {said}")
        named = [
            {(one["machine"], one["rank"], one["cause"]) for one in recovery["culprits"]}
            for recovery in trial.recoveries
        ]
        assert named == [{(1, 1, said)}] * len(named)
        # The one that made progress, and what --max-attempts allows.
        assert len({e.event.generation for e in trial.of(TrainerStarted)}) <= 3
        # Its own log is shown, not that of a bystander with a traceback.
        assert re.search(r"the end of .*node-1/rank-1.log: .*about to leave", plain(trial.output))
        assert "Connection closed by peer" not in trial.output
        assert trial.result["kept_memory"]["iteration"] == 5
        assert any(name.endswith(".kept") for name in run.memory())
        castor = str(Path(sys.executable).with_name("castor"))
        subprocess.run([castor, "clean", "--job", run.job], check=True, capture_output=True)
        assert run.memory() == []
