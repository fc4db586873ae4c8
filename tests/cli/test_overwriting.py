"""Every command that writes a file of a given name leaves the user's own alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from castor.app import app

EXPERIMENT = """
name = "small"
cluster = "p4d"
model = "gpt2-100b"
duration = "2d"
seeds = 2
[failures]
per_day = 4.0
[strategies.mine]
kind = "own.py:Mine"
"""

OWN = """
from castor_sim.strategies import Gemini

class Mine(Gemini):
    kind: str = "own.py:Mine"
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # As Python does unless told otherwise: a __pycache__ beside the strategy would be found out.
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (tmp_path / "experiment.toml").write_text(EXPERIMENT)
    (tmp_path / "own.py").write_text(OWN)
    result = CliRunner().invoke(
        app, ["trace", "generate", "--machines", "9", "--rate", "1%/day", "-o", "source.csv"]
    )
    assert result.exit_code == 0, result.output
    return tmp_path


LOG = Path(__file__).parents[2] / "docs" / "images" / "recovery-machine.events.jsonl"

COMMANDS = [
    (["trace", "generate", "--machines", "9", "--rate", "1%/day", "-o", "x.csv"], "x.csv"),
    (["trace", "rescale", "source.csv", "--machines", "3", "-o", "x.csv"], "x.csv"),
    (["trace", "shuffle", "source.csv", "-o", "x.csv"], "x.csv"),
    (["trace", "slice", "source.csv", "--to", "1d", "-o", "x.csv"], "x.csv"),
    (["trace", "compress", "source.csv", "--factor", "2", "-o", "x.csv"], "x.csv"),
    (["trace", "merge", "source.csv", "source.csv", "-o", "x.csv"], "x.csv"),
    (["trace", "import", "source.csv", "-o", "x.csv"], "x.csv"),
    (["trace", "plot", "source.csv", "-o", "x"], "x.pdf"),
    (["simulate", "experiment.toml", "--out", "x"], "x/summary.csv"),
    (["simulate", "experiment.toml", "--out", "x"], "x/own.py"),
    (["simulate", "experiment.toml", "--out", "x"], "x/events/mine.jsonl"),
    (["sweep", "experiment.toml", "--over", "seeds=2", "--out", "x"], "x/sweep.json"),
    (["advise", "p4d", "gpt2-100b", "--seeds", "2", "--out", "x.toml"], "x.toml"),
    (["iterate", "gpt2-40b-p3dn", "--timeline", "x.json"], "x.json"),
    (["iterate", "gpt2-40b-p3dn", "--timeline", "x.png"], "x.pdf"),
    (["recovery", str(LOG), "-o", "x.json"], "x.json"),
    (["figures", "--only", "fig09", "--out", "x"], "x/fig09.csv"),
]


@pytest.mark.parametrize(
    ("words", "file"), COMMANDS, ids=[f"{words[0]}-{words[1]}-{file}" for words, file in COMMANDS]
)
def test_the_users_file_stays(here: Path, words: list[str], file: str) -> None:
    target = here / file
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("the user's own")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    result = CliRunner().invoke(app, words)
    assert result.exit_code != 0
    assert target.read_text() == "the user's own"
    after = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert after == before, "nothing else is written either"


def test_it_is_replaced_when_the_user_says_so_and_again_by_itself(here: Path) -> None:
    (here / "x.csv").write_text("the user's own")
    words = ["trace", "shuffle", "source.csv", "-o", "x.csv"]
    assert CliRunner().invoke(app, [*words, "--overwrite"]).exit_code == 0
    assert CliRunner().invoke(app, words).exit_code == 0


def test_a_result_beside_its_experiment_replaces_neither_it_nor_its_strategy(here: Path) -> None:
    for extra in ([], ["--overwrite"]):
        result = CliRunner().invoke(app, ["simulate", "experiment.toml", "--out", ".", *extra])
        assert result.exit_code != 0
        assert (here / "experiment.toml").read_text() == EXPERIMENT
        assert (here / "own.py").read_text() == OWN
    assert not (here / "result.json").exists()
