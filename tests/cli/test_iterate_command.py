"""castor iterate: its table, JSON and timelines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from castor.app import app
from castor_configs.errors import InputError

QUICK = ("four-node", "--set", "iteration.parallelism=data")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["iterate", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_papers_experiment_as_json() -> None:
    document: dict[str, Any] = json.loads(run("gpt2-40b-p3dn", "--json"))
    schemes = document["schemes"]
    assert list(schemes) == ["none", "blocking", "naive", "unpipelined", "pipelined"]
    took = {name: scheme["iteration_s"] for name, scheme in schemes.items()}
    assert schemes["naive"]["out_of_memory"]
    assert took["naive"] is None
    assert took["none"] <= took["pipelined"] < took["unpipelined"] < took["blocking"]
    assert schemes["pipelined"]["overhead"] < 0.005
    assert schemes["blocking"]["overhead"] == pytest.approx(0.10, abs=0.005)
    assert schemes["unpipelined"]["overhead"] == pytest.approx(0.035, abs=0.003)
    # What costs nothing is taken every iteration; what delays, less often.
    assert schemes["pipelined"]["checkpoint_every"] == 1
    assert schemes["blocking"]["checkpoint_every"] > schemes["unpipelined"]["checkpoint_every"] > 1
    idle = document["idle"]
    assert idle["largest_s"] == max(idle["spans_s"])
    assert idle["total_s"] == pytest.approx(sum(idle["spans_s"]))
    sent = document["checkpoint"]["shard_bytes"]
    assert {schemes[name]["sent_bytes"] for name in ("blocking", "pipelined")} == {sent}


def test_chosen_schemes_are_shown_beside_the_baseline() -> None:
    document = json.loads(run(*QUICK, "--scheme", "blocking", "--json"))
    assert list(document["schemes"]) == ["none", "blocking"]
    table = run(*QUICK, "--scheme", "blocking")
    assert "blocking" in table
    assert "pipelined" not in table


def test_the_timeline_opens_in_perfetto(tmp_path: Path) -> None:
    file = tmp_path / "deeper" / "timeline.json"
    run(*QUICK, "--timeline", str(file))
    events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    processes = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert processes[:2] == ["none", "blocking"]
    ran = [event for event in events if event["ph"] == "X"]
    assert {event["cat"] for event in ran} >= {"forward", "reduce", "chunk", "copy", "update"}
    assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in ran)
    threads = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    assert {(event["pid"], event["tid"]) for event in ran} <= threads


@pytest.mark.long
def test_the_picture_is_written_as_png_and_pdf(tmp_path: Path) -> None:
    run(*QUICK, "--scheme", "pipelined", "--timeline", str(tmp_path / "iteration.png"))
    assert (tmp_path / "iteration.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "iteration.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("four-node", "--scheme", "fast"), "expected one of none, blocking, .*not .fast"),
        (("four-node", "--timeline", "a.svg"), r"\.json, \.png or \.pdf"),
        (("four-node", "--set", "iteration.mu=2"), "iteration.mu"),
        (("nowhere",), "no experiment of this name"),
        (("four-node", "--set", 'iteration.buffer="2B"'), "one byte for each of 4 sub-buffers"),
        (("four-node", "--set", 'iteration.buffer="8B"'), "chunks of 2"),
        (("four-node", "--set", "iteration.micro_batches=100000000"), "at most 10000"),
        (("four-node", "--set", "replicas=5"), "replicas: is 5; use 1 to 4"),
        (("four-node", "--set", "machines=1"), "replicas: is 2; use 1 to 1"),
    ],
)
def test_a_fault_is_one_clear_line(arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        run(*arguments)


@pytest.mark.parametrize("scheme", ["naive", "unpipelined"])
def test_the_own_replicas_parts_are_bounded_whatever_the_scheme(scheme: str) -> None:
    many = ("--set", 'iteration.buffer="100MB"', "--set", "iteration.sub_buffers=100000000")
    with pytest.raises(InputError, match="chunks of 1,"):
        run(*QUICK, *many, "--scheme", scheme)


@pytest.mark.parametrize(
    ("folder", "asked"),
    [
        ("timeline.json", "timeline.json"),
        ("timeline.pdf", "timeline.png"),
        ("timeline.png", "timeline.pdf"),
    ],
)
def test_a_folder_is_no_timeline_and_leaves_no_half_of_one(
    tmp_path: Path, folder: str, asked: str
) -> None:
    (tmp_path / folder).mkdir()
    with pytest.raises(InputError, match=f"{folder}: --timeline: expected a file"):
        run(*QUICK, "--timeline", str(tmp_path / asked))
    assert [file.name for file in tmp_path.iterdir()] == [folder]


def test_long_times_and_large_costs_are_whole_at_80_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    table = run("gpt2-40b-p3dn", "--set", "replicas=16")
    for whole in ("unpipelined", "out of memory", "1 min 8 s", "%", "every"):
        assert whole in table
    assert "\N{HORIZONTAL ELLIPSIS}" not in table
    assert max(len(line) for line in table.splitlines()) <= 80


def test_the_same_experiment_still_simulates_a_cluster() -> None:
    arguments = ["simulate", "gpt2-40b-p3dn", "--dry-run"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "[iteration]" in result.stdout
