"""Agents that ask to be let in while a job trains: none may disturb it (cases c06, and others)."""

from __future__ import annotations

from typing import Any

import pytest

from castor_lab.soak.trial import plain
from castor_records.events.failures import Detected


@pytest.mark.long
def test_strangers_and_second_agents_of_a_name_are_refused_and_disturb_nobody(
    castor_train: Any, baseline: Any
) -> None:
    trial = castor_train(
        *("--nodes", "2", "--kill", "twin:1@6", "--kill", "stranger@8", "--kill", "twin:0@10"),
        iterations=100,
    )
    assert trial.code == 0
    assert trial.sha256 == baseline(2, 100)
    assert trial.result["strangers"] == {"twin-of-node-1": 2, "stranger-1": 2, "twin-of-node-0": 2}
    assert trial.result["faults_not_injected"] == []
    assert trial.recoveries == []
    assert trial.of(Detected) == []
    said = plain(trial.output)
    assert "agent stranger-1 on" in said
    assert "is not the secret of this job" in said
    log = plain((trial.folder / "strangers" / "twin-of-node-1" / "agent.log").read_text())
    assert "is alive on" in log
    assert "give this one another --name" in log
