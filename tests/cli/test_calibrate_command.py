"""castor calibrate: its file, its JSON, and castor iterate on what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from castor.app import app
from castor_configs.errors import InputError
from castor_policy.agents.job_spec import JobSpec
from castor_policy.job_options import TrafficOptions
from castor_records.events.event import Entry
from castor_records.events.training import IterationEnded, LinkMeasured, Scheduled, SpansProfiled

MS = 10**6
QUICK = ("four-node", "--scheme", "blocking", "--json")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run of two ranks: 10 ms of computing, a gather of 15 ms, 5 ms, an update."""
    path = tmp_path / "baseline"
    path.mkdir()
    (path / "run.json").write_text("{}", encoding="utf-8")
    job = JobSpec(
        job="baseline",
        machines=2,
        ranks_per_machine=1,
        placement="group",
        replicas=((0, 1), (1, 0)),
        script="train.py",
        arguments=("--hidden", "64"),
        traffic=TrafficOptions(scheme="none", chunk_bytes=1 << 20),
    )
    spec = json.loads(job.to_json())
    cluster = {"name": "cal", "bandwidth_bps": 400 * 10**6, "storage_bandwidth_bps": 0}
    result = {"outcome": "finished", "compute": "real", "spec": spec, "cluster": cluster}
    (path / "result.json").write_text(json.dumps(result), encoding="utf-8")
    events = []
    for rank in range(2):
        known = {"generation": 1, "rank": rank}
        link = {"agreed_alpha_ns": 0, "agreed_bandwidth_bps": 400 * 10**6}
        events.append(Entry(1, LinkMeasured.of_fields({**known, **link})))
        events.append(Entry(1, Scheduled(**known, iteration=1, shard_bytes=10**6)))
        profile = {
            "iteration": 5,
            "iterations": 4,
            "ops": ["all_gather"],
            "op_bytes": [1_428_571],  # half of them, and 5 % of framing, in 15 ms
            "issued_ns": [10 * MS],
            "waited_ns": [10 * MS],
            "resumed_ns": [25 * MS],
            "ended_ns": [25 * MS],
            "before_update_ns": 30 * MS,
            "iteration_ns": 34 * MS,
            "update_ns": 4 * MS,
            "deviation": 0.0,
        }
        events.append(Entry(2, SpansProfiled.of_fields({**known, **profile})))
        for iteration in range(1, 12):
            ended = {**known, "iteration": iteration}
            events.append(Entry(iteration * 34 * MS, IterationEnded.of_fields(ended)))
    lines = "".join(e.to_line() + "\n" for e in sorted(events, key=lambda e: e.time_ns))
    (path / "events.jsonl").write_text(lines, encoding="utf-8")
    return path


def test_what_is_written_is_what_iterate_simulates(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "out" / "profile.toml"
    document = json.loads(run("calibrate", str(folder), "-o", str(file), "--json"))
    assert document["iteration"] == pytest.approx(
        {"count": 6, "measured_s": 0.034, "simulated_s": 0.034}
    )
    gather = document["collectives"]["all_gather"]
    assert gather == {
        "count": 1,
        "bytes": 1_428_571,
        "wire_share": 0.5,
        "is_known": True,
        "measured_s": 0.015,
        "fitted_s": pytest.approx(0.015),
    }
    for link, seconds in (("400mbit", 0.034), ("200mbit", 0.049), ("800mbit", 0.0265)):
        found: dict[str, Any] = json.loads(
            run("iterate", *QUICK, "--profile", str(file), "--link", link)
        )
        schemes = found["schemes"]
        assert schemes["none"]["iteration_s"] == pytest.approx(seconds)
        # A megabyte at the link's rate: no time of any size was logged, so what ranks agreed on.
        blocking_s = 8e6 / (float(link[:3]) * 1e6)
        assert schemes["blocking"]["iteration_s"] == pytest.approx(seconds + blocking_s)
        assert found["checkpoint"]["copy_bandwidth_bps"] is None


def test_without_a_file_the_profile_is_printed(folder: Path, tmp_path: Path) -> None:
    printed = run("calibrate", str(folder))
    file = tmp_path / "printed.toml"
    file.write_text(printed, encoding="utf-8")
    found = json.loads(run("iterate", *QUICK, "--profile", str(file)))
    assert found["schemes"]["none"]["iteration_s"] == pytest.approx(0.034)


def test_a_table_says_what_was_fitted(folder: Path) -> None:
    result = CliRunner().invoke(app, ["calibrate", str(folder)], catch_exceptions=False)
    for words in ("all_gather", "0.500 (ring)", "no such hop", "measured 34 ms (+0.0%)"):
        assert words in result.stderr
    assert "commit" in result.stderr
    assert "compute                  real" in result.stderr


def test_faults_are_said(folder: Path, tmp_path: Path) -> None:
    invoke = CliRunner().invoke
    with pytest.raises(InputError, match="is no run folder"):
        invoke(app, ["calibrate", str(tmp_path / "none")], catch_exceptions=False)
    with pytest.raises(InputError, match="names a run twice"):
        invoke(app, ["calibrate", str(folder), f"{folder}/."], catch_exceptions=False)
    for out in (str(tmp_path), ""):
        with pytest.raises(InputError, match="expected a file; this is a folder"):
            invoke(app, ["calibrate", str(folder), "-o", out], catch_exceptions=False)
    with pytest.raises(InputError, match="--shard"):
        invoke(app, ["calibrate", str(folder), "--shard", "big"], catch_exceptions=False)
    with pytest.raises(InputError, match="--profile"):
        invoke(app, ["iterate", *QUICK, "--link", "1gbit"], catch_exceptions=False)
    file = tmp_path / "profile.toml"
    run("calibrate", str(folder), "-o", str(file), "--json")
    arguments = ["iterate", *QUICK, "--profile", str(file), "--link", "fast"]
    with pytest.raises(InputError, match="bandwidth"):
        invoke(app, arguments, catch_exceptions=False)


def test_a_profile_without_an_iteration_is_refused(folder: Path) -> None:
    log = folder / "events.jsonl"
    log.write_text(log.read_text().replace('"before_update_ns":30000000', '"before_update_ns":-4'))
    with pytest.raises(InputError, match="before_update_ns -4: expected more than 0"):
        CliRunner().invoke(app, ["calibrate", str(folder)], catch_exceptions=False)
