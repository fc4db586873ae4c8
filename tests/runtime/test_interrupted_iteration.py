"""An iteration of DeepSpeed is thrown away, wherever it was interrupted; see the program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long

PROGRAM = Path(__file__).parent / "interrupted_program.py"


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("interrupted") / "said"
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}
    line = [sys.executable, str(PROGRAM), str(out)]
    # DeepSpeed says what each iteration took.
    subprocess.run(line, env=environment, check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_it_is_interrupted_at_each_collective_of_every_kind_of_iteration(
    said: dict[str, Any],
) -> None:
    assert set(said) == {"plain", "nothing shared", "checkpointed, clipped", "offloaded"}
    for one in said.values():
        assert min(one["attempts"].values()) > 10


def test_the_engine_stands_as_it_was_when_it_was_new(said: dict[str, Any]) -> None:
    assert {case: one["unlike"][:3] for case, one in said.items() if one["unlike"]} == {}


def test_the_order_of_the_modules_is_kept_wherever_it_is_interrupted(said: dict[str, Any]) -> None:
    for one in said.values():
        assert one["traces"] > sum(one["attempts"].values()) > 20


def test_what_training_comes_to_is_what_it_comes_to_undisturbed(said: dict[str, Any]) -> None:
    assert {case: one["wrong"] for case, one in said.items() if one["wrong"]} == {}
