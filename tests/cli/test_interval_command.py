"""`castor interval`: its JSON, its table, and how it refuses bad input."""

from __future__ import annotations

import json
import math

import pytest
from typer.testing import CliRunner

from castor.app import app, main
from castor_policy.frequency import (
    daly_interval_s,
    expected_slowdown,
    optimal_interval_s,
    young_interval_s,
)

ISSUE = ["interval", "--mtbf", "24h", "--checkpoint-time", "5min", "--restart-time", "10min"]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_json_holds_the_intervals_the_slowdown_and_the_inputs() -> None:
    report = json.loads(run(*ISSUE, "--json"))
    assert (report["mtbf_s"], report["checkpoint_time_s"], report["restart_time_s"]) == (
        86_400.0,
        300.0,
        600.0,
    )
    assert report["young_s"] == young_interval_s(300.0, 86_400.0) == 7200.0
    assert report["daly_s"] == daly_interval_s(300.0, 86_400.0)
    assert report["optimal_s"] == optimal_interval_s(300.0, 86_400.0)
    optimal_s = report["optimal_s"]
    by_hand = 86_400 * math.exp(600 / 86_400) * math.expm1((optimal_s + 300) / 86_400) / optimal_s
    assert report["expected_slowdown"] == pytest.approx(by_hand, rel=1e-12)
    assert report["expected_slowdown"] <= report["daly_slowdown"] <= report["young_slowdown"]
    assert report["young_slowdown"] == expected_slowdown(7200.0, 300.0, 600.0, 86_400.0)


def test_the_table_says_the_interval_and_what_it_costs() -> None:
    shown = run(*ISSUE)
    assert "1 h 57 min" in shown
    assert "1.095764" in shown
    assert "9.58%" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_restart_may_be_left_out() -> None:
    report = json.loads(run("interval", "--mtbf", "100s", "--checkpoint-time", "1.5s", "--json"))
    assert (report["mtbf_s"], report["checkpoint_time_s"], report["restart_time_s"]) == (
        100.0,
        1.5,
        0.0,
    )


def test_a_free_checkpoint_is_taken_all_the_time() -> None:
    arguments = ("interval", "--mtbf", "1d", "--checkpoint-time", "0", "--restart-time", "1h")
    report = json.loads(run(*arguments, "--json"))
    assert report["optimal_s"] == report["young_s"] == report["daly_s"] == 0.0
    assert report["expected_slowdown"] == pytest.approx(math.exp(1 / 24))
    assert "all the time" in run(*arguments)


def test_what_never_ends_is_null_in_json_and_said_in_words() -> None:
    arguments = ("interval", "--mtbf", "1s", "--checkpoint-time", "5min", "--restart-time", "1h")
    report = json.loads(run(*arguments, "--json"))
    assert report["expected_slowdown"] is None
    assert report["optimal_s"] == pytest.approx(1.0)
    assert "No interval helps" in run(*arguments)


@pytest.mark.parametrize("option", ["--mtbf", "--checkpoint-time", "--restart-time"])
@pytest.mark.parametrize("value", ["-5h", "nan", "inf", "soon", "5 parsecs", ""])
def test_a_bad_time_names_its_option_and_exits_with_2(
    option: str, value: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*ISSUE, option, value]
    monkeypatch.setattr("sys.argv", ["castor", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"castor: {option}: expected a time")


def test_an_mtbf_of_zero_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["castor", *ISSUE, "--mtbf", "0h"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("castor: --mtbf: expected a time above 0")
