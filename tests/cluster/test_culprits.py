"""Who is named for a failure, on real processes and under load: the one that failed, or nobody."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from castor_lab.soak.trial import Trial, train
from castor_records.events.failures import Replaced, SetAside, TrainerStarted

pytestmark = pytest.mark.long

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "gpt2_tiny.py"
SMALL = ["--layers=1", "--hidden=32", "--sequence=32", "--batch=2"]


def named(trial: Trial) -> list[set[tuple[object, object]]]:
    """For each recovery, the machines and ranks that were held responsible."""
    return [
        {(one["machine"], one["rank"]) for one in recovery["culprits"]}
        for recovery in trial.recoveries
    ]


def test_a_rank_that_is_killed_again_and_again_is_named_and_a_standby_takes_its_place(
    castor_train: Any, all_cores_busy: None
) -> None:
    """One kill of rank 1 in three was booked on rank 0, whose socket failed a moment sooner."""
    kills = [f"--kill=rank:1@{iteration}" for iteration in (4, 9, 14, 19)]
    trial = castor_train("--nodes", "2", "--standby", "1", *kills, iterations=23)
    assert trial.code == 0
    found = named(trial)
    assert found == [{(1, 1)}] * 4
    (aside,) = trial.of(SetAside)
    assert (aside.event.agent, aside.event.stays) == ("node-1", False)
    (replaced,) = trial.of(Replaced)
    assert (replaced.event.machine, replaced.event.agent) == (1, "spare-0")
    assert replaced.event.generation == 4  # the first two failures cost it nothing
    assert "machine 1: node-1 is set aside: it failed 3 times" in trial.output


def test_an_option_that_nobody_knows_ends_the_run_at_once(tmp_path: Path) -> None:
    trial = train(
        tmp_path / "run", ["--nodes", "2", str(EXAMPLE), "--iterations", "5", *SMALL, "--node", "2"]
    )
    sys.stdout.write(trial.output)
    assert trial.code == 1
    assert "the same error twice before the first iteration" in trial.result["reason"]
    said = " ".join(trial.output.split())
    assert said.count("usage: gpt2_tiny.py") == 1
    assert "the script has no option --node: did you mean --nodes of castor train?" in said
    generations = {entry.event.generation for entry in trial.of(TrainerStarted)}
    assert len(generations) == 2
