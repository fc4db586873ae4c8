"""`castor simulate` and `castor demo`: what they print and write, and that it can be run again."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from castor.app import app, main
from castor_analysis.pictures.outcome import draw_comparison
from castor_records.events.failures import Resumed, RunEnded, RunStarted
from castor_records.events.line import parse_line
from castor_sim.tally import WASTE_KINDS

SMALL = ["--set", 'duration="20d"', "--seeds", "3"]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_slow_machines_are_said_to_be_for_the_simpy_engine() -> None:
    slow = ("--set", 'stragglers={rate="1/day", speed=0.5, set_aside_after="1h"}')
    standby = ("--set", "replacement.standbys=1", "--set", "failures.hardware_share=0.5")
    short = ("--set", 'duration="5d"', "--seeds", "2", "--jobs", "1")
    words = ("simulate", "gpt2-100b-p4d", *short, *slow, *standby, "--json")
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    said = " ".join(result.stderr.split())
    assert "note: the compiled engine knows failures alone; the simpy engine runs" in said
    document = json.loads(result.stdout)
    assert document["engine"] == "simpy"
    row = document["strategies"]["gemini"]
    assert row["wasted_time_s"]["slow"] > 0
    assert row["set_aside"] > 0
    assert sum(row["recovered_from"].values()) == row["failures"]["total"] + row["set_aside"]


def fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["castor", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    return said.err


def test_json_has_what_a_reader_of_the_issue_expects() -> None:
    document = json.loads(run("simulate", "gpt2-100b-p4d", *SMALL, "--json"))
    assert set(document["strategies"]) >= {"gemini", "strawman", "highfreq"}
    for row in document["strategies"].values():
        ratio = row["effective_training_time_ratio"]
        assert 0 <= ratio["ci95_low"] <= ratio["mean"] <= ratio["ci95_high"] <= 1
        waste = row["wasted_time_s"]
        assert sum(waste[part] for part in WASTE_KINDS) == pytest.approx(waste["total"])
        useful_s = ratio["mean"] * row["wall_time_s"]
        assert useful_s + waste["total"] == pytest.approx(row["wall_time_s"])
        assert sum(row["recovered_from"].values()) == pytest.approx(row["failures"]["total"])


def test_a_result_can_be_run_again_from_its_own_folder(tmp_path: Path) -> None:
    out = tmp_path / "result"
    run("simulate", "four-node", *SMALL, "--out", str(out))
    written = json.loads((out / "result.json").read_text())
    again = json.loads(run("simulate", str(out / "experiment.toml"), "--json", "--jobs", "1"))
    assert again["strategies"] == written["strategies"]
    assert written["provenance"]["castor"]
    with (out / "replications.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(written["strategies"])
    for row in rows:
        parts = sum(int(row[f"{part}_ns"]) for part in WASTE_KINDS)
        assert int(row["useful_ns"]) + parts == int(row["wall_ns"])
    assert not list(out.rglob("*.unfinished"))


def test_the_event_log_tells_each_recovery_from_failure_to_resumption(tmp_path: Path) -> None:
    run("simulate", "gpt2-100b-p4d", *SMALL, "--out", str(tmp_path))
    lines = (tmp_path / "events" / "gemini.jsonl").read_text().splitlines()
    events = [event for event in map(parse_line, lines) if event]
    assert len(events) == len(lines)
    assert [event.time_ns for event in events] == sorted(event.time_ns for event in events)
    assert isinstance(events[0].event, RunStarted)
    assert isinstance(events[-1].event, RunEnded)
    resumed = [entry for entry in events if isinstance(entry.event, Resumed)]
    assert len(resumed) > 20
    assert {entry.event.tier for entry in resumed} == {"own_memory"}


def test_all_engines_print_the_same_strategies() -> None:
    arguments = ("simulate", "gpt2-100b-p4d", "--set", 'duration="3d"', "--seeds", "2", "--json")
    jump = json.loads(run(*arguments))["strategies"]
    for engine in (("--engine", "simpy"), ("--exact-iterations",)):
        assert json.loads(run(*arguments, *engine, "--jobs", "1"))["strategies"] == jump


@pytest.mark.long
def test_plot_draws_the_comparison_and_every_timeline(tmp_path: Path) -> None:
    run("simulate", "four-node", *SMALL, "--out", str(tmp_path), "--plot")
    for name in ("comparison", "timeline-gemini", "timeline-daly"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert json.loads((tmp_path / "timeline.perfetto.json").read_text())["traceEvents"]


def test_a_trace_on_the_command_line_replaces_the_generator(tmp_path: Path) -> None:
    trace = tmp_path / "two.csv"
    trace.write_text(
        "# name: two\n# machines: 4\n# span_s: 100000\n"
        "time_s,machine,kind,duration_s,domain,cause\n"
        "1000,1,software,,,\n50000,2,hardware,600,,\n"
    )
    words = ("simulate", "four-node", "--trace", str(trace), "--seeds", "2", "--json")
    row = json.loads(run(*words))["strategies"]["gemini"]
    assert row["failures"] == {"total": 2.0, "software": 1.0, "hardware": 1.0, "spare": 0.0}
    assert row["recovered_from"]["own_memory"] == row["recovered_from"]["peer"] == 1.0
    assert row["wall_time_s"] == 100_000.0


def test_dry_run_prints_a_configuration_that_loads(tmp_path: Path) -> None:
    printed = run("simulate", "gpt2-100b-p4d", "--set", "replicas=3", "--dry-run")
    path = tmp_path / "printed.toml"
    path.write_text(printed)
    assert run("simulate", str(path), "--dry-run") == printed
    assert "replicas = 3" in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("simulate", "gpt2-100b-p5d"), "gpt2-100b-p4d"),
        (("simulate", "four-node", "--set", "replcas=2"), "replicas"),
        (("simulate", "four-node", "--set", "replicas"), "--set"),
        (("simulate", "four-node", "--set", "replicas=9"), "9"),
        (("simulate", "four-node", "--trace", "missing.csv"), "missing.csv"),
        (("simulate", "four-node", "--plot"), "--out"),
    ],
)
def test_bad_input_is_one_clear_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    said: str,
) -> None:
    assert said in fails(capsys, monkeypatch, *words)


def test_nothing_is_written_when_the_experiment_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "result"
    fails(capsys, monkeypatch, "simulate", "four-node", "--set", "replicas=9", "--out", str(out))
    assert not out.exists()


@pytest.mark.long
def test_demo_says_which_failures_it_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)], catch_exceptions=False)
    assert shown.exit_code == 0
    real = "real failure trace InfiniteHBD" in shown.stderr
    generated = "generated failures at OPT-175B's published rate" in shown.stderr
    assert real != generated
    assert (tmp_path / "comparison.png").exists()
    assert tomllib.loads((tmp_path / "experiment.toml").read_text())["strategies"]["castor"][
        "detection"
    ] == {"lease": "5s"}
    strategies = json.loads((tmp_path / "result.json").read_text())["strategies"]
    of_castor, of_gemini = (
        strategies[name]["wasted_time_s"]["detection"] for name in ("castor", "gemini")
    )
    assert 0 < of_castor < of_gemini / 2


def test_help_needs_no_engine_and_the_simulator_no_torch() -> None:
    code = (
        "import sys, castor.app\n"
        "heavy = {'numpy', 'numba', 'simpy', 'matplotlib', 'scipy', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "import castor_sim.run\n"
        "assert 'torch' not in sys.modules\n"
        "import castor_runtime\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_result_with_an_own_strategy_can_be_run_again(tmp_path: Path) -> None:
    out = tmp_path / "result"
    run("simulate", "examples/own_strategy.toml", *SMALL, "--out", str(out))
    again = json.loads(run("simulate", str(out / "experiment.toml"), "--json"))
    assert again["strategies"] == json.loads((out / "result.json").read_text())["strategies"]


def test_a_new_result_clears_what_an_older_one_left(tmp_path: Path) -> None:
    run("simulate", "four-node", *SMALL, "--out", str(tmp_path))
    assert (tmp_path / "events" / "none.jsonl").exists()
    (tmp_path / "notes.txt").write_text("mine")
    run("simulate", "gpt2-100b-p4d", *SMALL, "--out", str(tmp_path))
    assert not (tmp_path / "events" / "none.jsonl").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_one_replication_has_no_interval(tmp_path: Path) -> None:
    words = ("simulate", "four-node", "--set", 'duration="20d"', "--seeds", "1")
    document = json.loads(run(*words, "--json"))
    ratio = document["strategies"]["gemini"]["effective_training_time_ratio"]
    assert ratio["ci95_low"] is None
    assert "±" not in run(*words)
    for picture in draw_comparison(document, tmp_path / "comparison"):
        assert picture.stat().st_size > 10_000


def test_a_folder_that_cannot_be_written_is_found_out_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for command in (("simulate", "four-node"), ("figures",), ("demo",)):
        said = fails(capsys, monkeypatch, *command, "--out", str(tmp_path / "file" / "x"))
        assert "cannot be made a folder" in said


def test_a_failure_at_the_end_of_a_trace_counts(tmp_path: Path) -> None:
    trace = tmp_path / "end.csv"
    trace.write_text(
        "# name: end\n# machines: 4\n# span_s: 100000\n"
        "time_s,machine,kind,duration_s,domain,cause\n100000,1,hardware,,,\n"
    )
    for engine in ("jump", "simpy"):
        words = ("simulate", "four-node", "--trace", str(trace), "--engine", engine, "--json")
        row = json.loads(run(*words, "--seeds", "1", "--jobs", "1"))["strategies"]["gemini"]
        assert row["failures"]["total"] == row["recovered_from"]["pending"] == 1.0


def test_a_machine_that_never_comes_back_is_waited_for_to_the_end(tmp_path: Path) -> None:
    trace = tmp_path / "never.csv"
    trace.write_text(
        "# name: never\n# machines: 4\n# span_s: 1000000\n"
        "time_s,machine,kind,duration_s,domain,cause\n500000,1,hardware,9223000000,,\n"
    )
    words = ("simulate", "four-node", "--trace", str(trace), "--seeds", "1", "--json")
    words = (*words, "--jobs", "1")
    jump = json.loads(run(*words))["strategies"]
    assert json.loads(run(*words, "--engine", "simpy"))["strategies"] == jump
    assert jump["gemini"]["effective_training_time_ratio"]["mean"] == pytest.approx(0.5, abs=0.001)
