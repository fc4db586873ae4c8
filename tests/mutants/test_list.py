"""The list of planted faults is of the code as it stands; `make mutants` plants them."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MUTANTS = tomllib.loads((HERE / "mutants.toml").read_text())["mutant"]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant["breaks"])
def test_the_text_stands_there_once_and_the_test_is_there(mutant: dict[str, str]) -> None:
    assert (ROOT / mutant["file"]).read_text().count(mutant["old"]) == 1
    file, _, name = mutant["test"].partition("::")
    function = name.partition("[")[0]
    tree = ast.parse((ROOT / file).read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_there_are_at_least_thirty_over_policy_simulator_and_runtime() -> None:
    rooms = [mutant["file"].partition("/")[0] for mutant in MUTANTS]
    assert len(rooms) >= 30
    assert min(rooms.count(room) for room in ("policy", "sim", "runtime")) >= 5
