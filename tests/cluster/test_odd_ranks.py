"""A rank that all others wait for, and one whose loss is no number, are named on real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from castor_lab.soak.trial import train
from castor_records.events.failures import Detected
from castor_records.events.training import NotFinite, Slow

pytestmark = pytest.mark.long

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "gpt2_tiny.py"
SMALL = ("--layers=1", "--hidden=32", "--sequence=32", "--batch=2")
LATE_S = 0.3

ODD = """
import runpy, time
import castor
import torch.distributed as dist

class Odd(castor.Checkpointer):
    def step(self, loss=None):
        iteration = self._state.iteration()
        if dist.get_rank() == 1:
            time.sleep({late_s})
        if (dist.get_rank(), iteration) == (2, 9):
            loss = float("nan")
        super().step(loss=loss)

castor.Checkpointer = Odd
runpy.run_path({example!r}, run_name="__main__")
"""


def test_a_slow_rank_and_one_whose_loss_is_no_number_are_named_and_nothing_is_done(
    tmp_path: Path,
) -> None:
    script = tmp_path / "odd.py"
    script.write_text(ODD.format(example=str(EXAMPLE), late_s=LATE_S))
    options = ("--nodes", "3", "--slow-looks", "2", str(script), "--iterations", "14", *SMALL)
    trial = train(tmp_path / "run", options)
    assert trial.code == 0, trial.output
    [slow] = [entry.event for entry in trial.of(Slow)]
    assert (slow.machine, slow.rank, slow.over) == (1, 1, False)
    assert slow.own_s > LATE_S
    assert slow.costs_s > 0.5 * LATE_S
    [odd] = [entry.event for entry in trial.of(NotFinite)]
    assert (odd.machine, odd.rank, odd.iteration) == (2, 2, 9)
    assert "rank 1 of machine 1 is slow" in trial.output
    assert "rank 2 of machine 2: its loss in iteration 9 is not finite" in trial.output
    assert not list(trial.of(Detected))
