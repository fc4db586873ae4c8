"""result.json: read back as it was written, and its damage is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from castor_configs.errors import InputError
from castor_records.phases import MEASURED
from castor_records.recoveries import Recovery
from castor_records.result import Result
from castor_records.run_files import RunFiles

RECOVERY = Recovery(
    generation=3,
    generations=(2, 3),
    kind="hardware",
    cause="the lease of agent node-1 expired",
    machines=(1,),
    sources={0: "own_memory", 10: "peer:node-0"},
    iteration=9,
    iterations_lost=1,
    seconds={phase.value: 0.5 for phase in MEASURED} | {"total": 3.5},
    culprits=({"machine": 1, "rank": None, "agent": "node-1", "how": "lease", "cause": "gone"},),
    seen=("machine 0: a connection was lost",),
)
RESULT = Result(
    job="j",
    run="r",
    outcome="finished",
    command=("castor", "train", "x.py"),
    compute="real",
    nodes=2,
    ranks_per_node=1,
    replicas=((0, 1), (1, 0)),
    spec={"mu": 0.9},
    iterations=12,
    wall_s=3.25,
    recoveries=(RECOVERY, replace(RECOVERY, iteration=None, iterations_lost=None)),
    strangers={"twin": 2},
)


def written(folder: Path, text: str) -> RunFiles:
    (folder / "run.json").write_text("{}", encoding="utf-8")
    (folder / "result.json").write_text(text, encoding="utf-8")
    return RunFiles(folder)


def test_it_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    text = json.dumps(RESULT.to_json())
    assert written(tmp_path, text).result() == RESULT
    assert json.loads(text)["recoveries"][0]["sources"] == {"0": "own_memory", "10": "peer:node-0"}


def test_what_earlier_versions_did_not_write_has_its_default() -> None:
    read = Result.of_json({"outcome": "failed", "of_a_later_version": 1})
    assert read == Result(outcome="failed")
    assert (read.compute, read.spec, read.recoveries) == (None, None, ())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"iterations": "12"}, "iterations: expected a whole number, not '12'"),
        ({"iterations": True}, "iterations: expected a whole number, not True"),
        ({"command": "castor train"}, "command: expected a list"),
        ({"spec": [1]}, "spec: expected an object"),
        ({"outcome": None}, "outcome: expected a text, not None"),
        ({"recoveries": [{"generation": 2}]}, "recoveries: one is damaged"),
    ],
)
def test_damage_is_named(tmp_path: Path, changed: dict[str, object], said: str) -> None:
    folder = written(tmp_path, json.dumps(RESULT.to_json() | changed))
    with pytest.raises(InputError, match=said):
        folder.result()
