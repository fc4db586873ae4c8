"""A user's state that outgrows its room by far, at once: held, or refused with nothing lost.

The case user_overflow of the faults: 64 MiB more in each iteration ended the job, or never did.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from castor_lab.soak.trial import plain, running, train

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "gpt2_tiny.py"
SMALL = ("--layers=1", "--hidden=32", "--sequence=32", "--batch=2")

PROGRAM = """
import atexit, runpy, sys
import castor

real = castor.Checkpointer

class Log:
    def __init__(self): self.lines = []
    def state_dict(self): return {"lines": list(self.lines)}
    def load_state_dict(self, state): self.lines = list(state["lines"])

class Growing(real):
    def __init__(self, engine, *, state=None, **options):
        self._log, self._engine = Log(), engine
        super().__init__(engine, state={**(state or {}), "log": self._log}, **options)
    def step(self, *arguments, **options):
        if self._engine.global_steps >= 6:
            self._log.lines.append(chr(96 + self._engine.global_steps) * (MIB << 20))
        super().step(*arguments, **options)
        if self._engine.global_steps == LAST:
            told = [f"{line[0]}:{len(line) >> 20}" for line in self._log.lines]
            print("held", *told, flush=True)

castor.Checkpointer = Growing
path = EXAMPLE
sys.argv[0] = path
sys.path.insert(0, str(path.rpartition("/")[0]))
runpy.run_path(path, run_name="__main__")
"""


@pytest.mark.long
def test_state_that_outgrows_its_room_at_once_comes_back(tmp_path: Path) -> None:
    script = tmp_path / "grows.py"
    text = PROGRAM.replace("MIB", "24").replace("LAST", "10").replace("EXAMPLE", repr(str(EXAMPLE)))
    script.write_text(text)
    options = ["--nodes", "2", "--lease", "3s", "--max-attempts", "2", "--kill", "rank:1@8"]
    trial = train(tmp_path / "run", [*options, str(script), "--iterations=10", *SMALL])
    assert trial.code == 0, trial.output
    assert trial.result["iterations"] == 10
    assert trial.memory_left == ()
    (recovery,) = trial.recoveries
    assert recovery["iterations_lost"] <= 1
    for rank, agent in enumerate(("node-0", "node-1")):
        said = plain((trial.folder / "agents" / agent / f"rank-{rank}.log").read_text())
        assert "held f:24 g:24 h:24 i:24 j:24" in said, said


@pytest.mark.long
def test_state_beyond_the_memory_limit_ends_the_job_and_a_higher_one_goes_on(
    tmp_path: Path,
) -> None:
    script = tmp_path / "grows.py"
    text = PROGRAM.replace("MIB", "24").replace("LAST", "8").replace("EXAMPLE", repr(str(EXAMPLE)))
    script.write_text(text)
    options = ["--nodes", "2", "--lease", "3s", "--max-attempts", "1", "--memory-limit", "40MiB"]
    castor = str(Path(sys.executable).with_name("castor"))
    with running(tmp_path / "run", [*options, str(script), "--iterations=8", *SMALL]) as run:
        trial = run.wait()
        assert trial.code == 1, trial.output
        assert "left of the limit, too little" in trial.result["reason"]
        assert trial.result["kept_memory"]["iteration"] == 5
        again = [castor, "resume", str(run.folder), "--memory-limit", "1GiB"]
        done = subprocess.run(again, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        result = json.loads((run.folder / "result.json").read_text())
        assert (result["outcome"], result["iterations"]) == ("finished", 8)
        said = plain((run.folder / "agents" / "node-0" / "rank-0.log").read_text())
        assert "held f:24 g:24 h:24" in said
        assert run.memory() == []
