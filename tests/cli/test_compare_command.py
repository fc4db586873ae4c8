"""castor compare on run folders that are written here; nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from castor.app import app, main
from castor_policy.agents.job_spec import JobSpec
from castor_policy.job_options import TrafficOptions
from castor_records.events.event import Entry
from castor_records.events.failures import RunStarted
from castor_records.events.training import (
    CheckpointCompleted,
    IterationEnded,
    LinkMeasured,
    Scheduled,
    SpansProfiled,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RANKS = 2
SIZE = 1_500_000
COMPUTE_NS = 40_000_000
SENT_BYTES = 200_000


def write_run(root: Path, scheme: str, mbps: int, factor: float = 1.0) -> Path:
    """A run whose iteration is two gathers of 1.5 MB at half their bytes, computing, an update."""
    folder = root / f"{scheme}-{mbps}"
    folder.mkdir()
    spec = JobSpec(
        job=folder.name,
        machines=RANKS,
        ranks_per_machine=1,
        placement="group",
        replicas=((0, 1), (1, 0)),
        script="train.py",
        arguments=("--hidden", "64", "--iterations", "9"),
        traffic=TrafficOptions(scheme=scheme, buffer_bytes=400_000),
    )
    result = {
        "job": folder.name,
        "outcome": "finished",
        "command": ["castor", "train", "--scheme", scheme],
        "compute": "paced",
        "versions": {"torch": "2"},
        "machine": {"cores": 2},
        "cluster": {"name": "t", "bandwidth_bps": mbps * 10**6, "storage_bandwidth_bps": 10**8},
        "spec": json.loads(spec.to_json()),
        "recoveries": [],
    }
    (folder / "run.json").write_text(json.dumps({"job": folder.name, "pid": 0}))
    (folder / "result.json").write_text(json.dumps(result))
    wire_ns = SIZE * 8 * 500 // mbps  # half of the bytes
    starts = [0, wire_ns + COMPUTE_NS]
    before_update_ns = 2 * (wire_ns + COMPUTE_NS)
    iteration_ns = round((before_update_ns + 10_000_000) * factor)
    events = [Entry(0, RunStarted(machines=RANKS, ranks=RANKS))]
    for rank in range(RANKS):
        own = {"generation": 1, "rank": rank}
        profile = {
            "iteration": 3,
            "iterations": 3,
            "spans_ns": [COMPUTE_NS, COMPUTE_NS],
            "ops": ["all_gather_into_tensor"] * 2,
            "op_bytes": [SIZE] * 2,
            "issued_ns": starts,
            "waited_ns": starts,
            "resumed_ns": [start + wire_ns for start in starts],
            "ended_ns": [start + wire_ns for start in starts],
            "before_update_ns": before_update_ns,
            "iteration_ns": before_update_ns + 10_000_000,
            "update_ns": 10_000_000,
            "deviation": 0.0,
        }
        link = {
            "alpha_ns": 0,
            "bandwidth_bps": mbps * 10**6,
            "agreed_alpha_ns": 0,
            "agreed_bandwidth_bps": mbps * 10**6,
            "sizes_bytes": [1],
            "times_ns": [1],
        }
        events.append(Entry(2, LinkMeasured.of_fields({**own, **link})))
        events.append(Entry(3, SpansProfiled.of_fields({**own, **profile})))
        if scheme != "none":
            scheduled = {"iteration": 3, "shard_bytes": SENT_BYTES, "copy_bandwidth_bps": 0}
            events.append(Entry(4, Scheduled.of_fields({**own, **scheduled})))
        for iteration in range(1, 10):
            at = {**own, "iteration": iteration}
            ended = {"seconds": iteration_ns / 1e9, "idle_s": 0.09}
            time_ns = iteration * iteration_ns
            events.append(Entry(time_ns, IterationEnded.of_fields({**at, **ended})))
            if scheme != "none":
                sent = {
                    "network_s": SENT_BYTES * 8 / (mbps * 1e6),
                    "sent_s": 0.1,
                    "captured_s": 0.0,
                    "commit_s": 0.0,
                    "sent_bytes": SENT_BYTES,
                }
                events.append(Entry(time_ns + 5, CheckpointCompleted.of_fields({**at, **sent})))
    events.sort(key=lambda event: event.time_ns)
    (folder / "events.jsonl").write_text("".join(event.to_line() + "\n" for event in events))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    folders = [
        write_run(tmp_path, "none", 100),
        write_run(tmp_path, "pipelined", 100),
        write_run(tmp_path, "none", 200, factor=1.25),
        write_run(tmp_path, "pipelined", 200),
    ]
    return [str(folder) for folder in folders]


@pytest.mark.long
def test_a_run_at_another_bandwidth_is_predicted_from_the_calibrated_one(
    runs: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["compare", *runs, "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["calibrated_on"] == ["none-100", "pipelined-100"]
    found = {
        (point["quantity"], point["setting"]["scheme"]): point for point in document["held_out"]
    }
    # Twice 30 ms of traffic at 200 Mbit/s, 80 ms of computing, 10 ms of update.
    assert found["iteration_s", "none"]["simulated"] == pytest.approx(0.150, rel=0.01)
    assert found["iteration_s", "none"]["error"] == pytest.approx(-0.2, abs=0.01)
    assert found["iteration_s", "pipelined"]["error"] == pytest.approx(0.0, abs=0.01)
    assert found["checkpoint_network_s", "pipelined"]["error"] == pytest.approx(0.0, abs=0.01)
    assert json.loads((out / "compare.json").read_text())["held_out"] == document["held_out"]
    assert (out / "compare.csv").read_text().startswith("quantity,held_out,link,model,scheme")
    assert "<svg" in (out / "compare.html").read_text()


def test_runs_that_a_profile_was_calibrated_on_are_no_checks(
    runs: list[str], tmp_path: Path
) -> None:
    for number, run in enumerate(runs):
        result_file = Path(run) / "result.json"
        # As castor train names them: not after the folder.
        document = json.loads(result_file.read_text()) | {"job": f"train-00{number}"}
        result_file.write_text(json.dumps(document))
    profile = str(tmp_path / "profile.toml")
    assert CliRunner().invoke(app, ["calibrate", *runs[:2], "-o", profile]).exit_code == 0
    result = CliRunner().invoke(app, ["compare", *runs, "--profile", profile, "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["calibrated_on"] == ["none-100", "pipelined-100"]
    measured = {run for point in document["held_out"] for run in point["runs"]}
    assert measured == {"none-200", "pipelined-200"}


def test_people_get_tables_with_every_error(runs: list[str]) -> None:
    result = CliRunner().invoke(app, ["compare", *runs], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    assert "-20.0%" in result.stdout
    assert "compute: paced" in result.stdout
    assert "calibrated on: none-100, pipelined-100" in result.stdout
    assert "order of the schemes: right in 1 of 2 settings" in result.stdout


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["castor", "compare", *words])
        with pytest.raises(SystemExit) as left:
            main()
    assert left.value.code == 2
    return capsys.readouterr().err


def test_faults_of_the_input_are_one_line(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no run.json" in refused(capsys, str(tmp_path))
    assert "names a run twice" in refused(capsys, runs[0], runs[0])
    assert "nothing is left to check" in refused(capsys, *runs[:2])
    assert "--scheme none" in refused(capsys, runs[1])
    assert "give one" in refused(capsys, *runs, "--sim", "gpt2-40b-p3dn", "--profile", runs[0])


def test_half_a_log_is_no_measurement(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = Path(runs[3]) / "events.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    assert f"{log}:" in refused(capsys, *runs, "--out", str(out))
    assert not out.exists()


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        (None, "script", None),
        (None, "arguments", "x"),
        (None, "replicas", []),
        (None, "machines", "four"),
        ("traffic", "mu", "x"),
        ("traffic", "sub_buffers", -3),
        ("traffic", "chunk_bytes", 0),
    ],
)
def test_a_damaged_result_names_the_key(
    runs: list[str], capsys: pytest.CaptureFixture[str], table: str | None, key: str, value: object
) -> None:
    file = Path(runs[2]) / "result.json"
    document = json.loads(file.read_text())
    (document["spec"] if table is None else document["spec"][table])[key] = value
    file.write_text(json.dumps(document))
    said = refused(capsys, *runs)
    assert f"{file}: is damaged: " in said
    assert key in said


def test_what_is_no_text_or_no_folder_is_no_run(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(runs[2]) / "result.json"
    assert "is no run folder" in refused(capsys, *runs[:2], str(file))
    file.write_bytes(b"\xff{}")
    assert f"{file}: is damaged" in refused(capsys, *runs)


def test_a_run_whose_scheme_never_came_into_force_is_no_check_of_it(runs: list[str]) -> None:
    log = Path(runs[3]) / "events.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(line for line in lines if '"scheduled"' not in line))
    result = CliRunner().invoke(app, ["compare", *runs, "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert {point["setting"]["scheme"] for point in document["held_out"]} == {"none"}
    assert "none came after the schedule was made" in document["left_out"]["pipelined-200"]


def test_of_a_report_all_is_written_or_nothing(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (out / "compare.html").mkdir(parents=True)
    assert "compare.html: expected a file; this is a folder" in refused(
        capsys, *runs, "--out", str(out)
    )
    assert [path.name for path in out.iterdir()] == ["compare.html"]


@pytest.mark.long
def test_an_experiment_predicts_every_run_and_is_calibrated_on_none(
    runs: list[str], tmp_path: Path
) -> None:
    model, experiment = tmp_path / "model.toml", tmp_path / "experiment.toml"
    # Four layers of its 128: each of four runs is simulated.
    whole = (CONFIGS / "models" / "gpt2-40b.toml").read_text()
    model.write_text(whole.replace("layers = 128", "layers = 4"))
    whole = (CONFIGS / "experiments" / "gpt2-40b-p3dn.toml").read_text()
    experiment.write_text(whole.replace('model = "gpt2-40b"', f'model = "{model}"'))
    words = ["compare", *runs, "--sim", str(experiment), "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert f"{experiment} has 8 GPUs on a machine, and these runs 1:" in result.stderr
    document = json.loads(result.stdout)
    assert document["calibrated_on"] == []
    assert {point["runs"][0] for point in document["held_out"]} == {Path(run).name for run in runs}
    assert all(point["simulated"] > 1 for point in document["held_out"][:1])
