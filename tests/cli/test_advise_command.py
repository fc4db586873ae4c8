"""`castor advise`: its JSON, its page, the experiment that it writes, and bad input."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from castor.app import app, main

PAPER = ["advise", "p4d", "gpt2-100b", "--seeds", "3"]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_json_has_what_was_promised() -> None:
    document = json.loads(run(*PAPER, "--rate", "1.5%/day", "--hardware-share", "0.5", "--json"))
    assert (
        document["recommendation"].items()
        >= {
            "replicas": 2,
            "placement": "group",
            "standbys": 0,
        }.items()
    )
    assert document["recommendation"]["persist_every_s"] > 0
    ratio = document["expected_effective_training_time_ratio"]
    assert 0.9 < ratio["ci95_low"] <= ratio["mean"] <= ratio["ci95_high"] < 1
    for key in ("reasons", "alternatives", "assumptions"):
        assert len(document[key]) >= 3
    assert document["failures"]["per_day"] == pytest.approx(0.24)


def test_the_page_fits_a_terminal_and_marks_the_choice() -> None:
    shown = run(*PAPER)
    assert "2, group placement" in shown
    assert "> 2 replicas" in shown
    assert "301 GB" in shown
    assert "Why" in shown
    assert "Assumed" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_the_same_request_gives_the_same_answer() -> None:
    assert run(*PAPER, "--json") == run(*PAPER, "--json")


def test_the_experiment_that_it_writes_runs(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    document = json.loads(run(*PAPER, "--out", str(file), "--json"))
    simulated = json.loads(run("simulate", str(file), "--json"))
    assert (
        simulated["strategies"]["castor"]["effective_training_time_ratio"]["mean"]
        == document["expected_effective_training_time_ratio"]["mean"]
    )


def test_a_budget_in_percent_or_bytes() -> None:
    for budget in ("20%", "230GB"):  # of 1152 GB: 301 GB do not fit, 150 GB do
        document = json.loads(run(*PAPER, "--budget-memory", budget, "--json"))
        assert document["recommendation"]["replicas"] == 1
        assert document["memory"]["fits"] == {"1": True, "2": False, "3": False, "4": False}
    shown = run(*PAPER, "--budget-memory", "1GB")
    assert "none: memory does not hold one" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["p4x", "gpt2-100b"], "did you mean `p4d`"),
        (["p4d", "gpt2-100x"], "did you mean `gpt2-100b`"),
        (["p4d", "gpt2-100b", "--rate", "1.5%"], "--rate: expected a rate"),
        (["p4d", "gpt2-100b", "--rate", "1.5"], "it has no period: write 1.5/day"),
        (["p4d", "gpt2-100b", "--rate", "1.5/s"], "--rate: 5400 failures an hour"),
        (["p4d", "gpt2-100b", "--hardware-share", "2"], "--hardware-share: expected a share"),
        (["p4d", "gpt2-100b", "--rack-rate", "often"], "--rack-rate: expected a rate"),
        (["p4d", "gpt2-100b", "--budget-memory", "lots"], "--budget-memory: expected a size"),
        (["p4d", "gpt2-100b", "--budget-memory", "300%"], "--budget-memory: expected a share"),
        (["p4d", "opt-175b"], "--set training.iteration"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["castor", "advise", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert "Traceback" not in shown.err
