"""Arguments of `castor train`, `agent`, `kill` and `status`: what is wrong is said at once.

Whole runs are in tests/cluster.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from castor.app import app
from castor.commands import train as train_command
from castor_configs.errors import InputError
from castor_lab.faults.fault import AtTime, Fault
from castor_lab.pacing import PACED_DEVICE
from castor_policy.agents.job_spec import JobSpec
from castor_policy.job_options import DeviceOptions, PersistenceOptions, TrafficOptions
from castor_policy.membership import WatchLimits
from castor_runtime.launcher.train_options import TrainOptions, job_name


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "gpt2 tiny.py"
    path.write_text("raise SystemExit('it must not run')")
    return str(path)


@pytest.fixture
def faults() -> list[Fault]:
    """Return the list that takes what shall fail in the runs that `options` takes."""
    return []


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch, faults: list[Fault]) -> list[TrainOptions]:
    """Return the list that takes the options of each run instead of running it."""
    taken: list[TrainOptions] = []

    def take(given: TrainOptions, _castor_options: object, **rest: Any) -> int:
        assert (rest["quiet"], rest["cluster"]) == (False, None)
        taken.append(given)
        faults.extend(rest["faults"])
        return 0

    monkeypatch.setattr(train_command, "run_to_end", take)
    return taken


def refused(*arguments: str) -> str:
    with pytest.raises(InputError) as error:
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "\n" not in str(error.value)
    return str(error.value)


def accepted(*arguments: str) -> None:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--nodes", "0"), "--nodes: expected 1 or more, not 0"),
        (("--ranks-per-node", "0"), "--ranks-per-node: expected 1 or more"),
        (("--replicas", "5"), "--replicas: expected 1 to 4"),
        (("--nodes", "1"), "--replicas: expected 1 to 1 (the nodes)"),
        (("--placement", "domains"), "--domains: `--placement domains` and"),
        (("--placement", "rings"), "did you mean ring?"),
        (("--scheme", "pipeline"), "did you mean pipelined?"),
        (("--scheme", "none", "--persist", "store"), "--persist: scheme none takes no checkpoint"),
        (("--send", "nccl"), "--send: nccl sends from GPUs, and training is on the CPU here"),
        (("--send", "ncll"), "did you mean nccl?"),
        (("--mu", "0"), "--mu: expected a share above 0 and up to 1, not 0"),
        (("--mu", "1.1"), "--mu: expected a share"),
        (("--mu", "nan"), "--mu: expected a share"),
        (("--sub-buffers", "0"), "--sub-buffers: expected 1 or more"),
        (("--buffer", "4Mb"), "--buffer: expected a size"),
        (("--buffer", "3B"), "--buffer: each of its 4 sub-buffers holds a byte or more"),
        (("--paced-copy", "400MiB"), "--paced-copy: expected a bandwidth"),
        (("--persist-every", "3m"), "--persist-every: expected a time"),
        (("--persist-every", "0"), "--persist-every: expected above 0 s, not 0 s"),
        (("--persist-keep", "0"), "--persist-keep"),
        (("--lease", "10ms"), "--lease: expected 1 to 600 s, not 0.01 s: etcd"),
        (("--hang", "100ms"), "--hang: expected 0.5 s or more"),
        (("--stall", "5"), "--stall"),
        (("--startup", "0s"), "--startup: expected 0.5 s or more"),
        (("--chunk", "16Mb"), "--chunk: expected a size"),
        (("--chunk", "100"), "--chunk: expected a multiple of 4096 B, not 100 B"),
        (("--memory-limit", "lots"), "--memory-limit: expected a size"),
        (("--max-attempts", "0"), "--max-attempts"),
        (("--store", "redis://h:1"), "--store: write a store as etcd://"),
        (("--store", "etcd://host"), "--store: write a store as etcd://"),
        (("--store", "etcd://h:1", "--kill", "store@3"), "only --store embedded"),
        (("--kill", "machine:4@10"), "use 0..3"),
        (("--kill", "machine:2"), "say when"),
        (("--job", "a/b"), "--job: expected at most"),
        (("--job", "a" * 33), "--job: expected at most"),
        (("--replay", "no-such-trace"), "no-such-trace"),
        (("--agents", "external", "--standby", "1"), "--standby"),
        (("--placement", "domains"), "external agents, which say theirs"),
        (("--operator", "command:true"), "local: goes with --agents local"),
        (("--agents", "external", "--operator", "comand:x"), "did you mean command?"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(
    script: str, arguments: tuple[str, ...], part: str
) -> None:
    assert part in refused("train", script, *arguments)


def test_a_script_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "no such script" in refused("train", str(tmp_path / "none.py"))
    assert "SCRIPT before" in refused("train", "--iterations", "30", "train.py")


def test_an_option_written_wrong_before_the_script_is_told_from_a_script(script: str) -> None:
    assert "did you mean --nodes of castor train?" in refused("train", "--node", "2", script)


def test_what_is_not_castors_goes_to_the_script(script: str, options: list[TrainOptions]) -> None:
    accepted("train", script, "--nodes", "5", "--iterations", "30", "-v", "--lr=1e-3", "words")
    accepted("train", script, "--nodes", "5", "--", "--nodes", "7")
    first, second = options
    assert first.spec.arguments == ("--iterations", "30", "-v", "--lr=1e-3", "words")
    assert second.spec.arguments == ("--nodes", "7")
    for one in options:
        assert (one.spec.machines, one.spec.placement) == (5, "mixed")
        assert one.spec.replicas == ((0, 1), (1, 0), (2, 3), (3, 4), (4, 2))
        assert one.spec.script == str(Path(script).resolve())
        assert one.out == Path("out") / f"train-{one.spec.job}"
    assert first.spec.job != second.spec.job


def test_units_and_faults_are_read(
    script: str, options: list[TrainOptions], faults: list[Fault], tmp_path: Path
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "# machines: 8\n# span_s: 7200\ntime_s,machine,kind,duration_s,domain,cause\n"
        "3600,5,hardware,,,DIMM\n"
    )
    accepted(
        *("train", script, "--persist", str(tmp_path / "p"), "--persist-every", "90min"),
        *("--chunk", "1MiB", "--lease", "2s", "--memory-limit", "2GiB", "--job", "mine"),
        *("--kill", "rank:1@20", "--kill", "root@5", "--replay", str(trace), "--speedup", "360"),
    )
    (given,) = options
    spec = given.spec
    assert spec.persistence == PersistenceOptions(tiers=(f"{tmp_path}/p",), every_s=5400.0)
    assert (spec.traffic.chunk_bytes, spec.limits.lease_s) == (1 << 20, 2.0)
    assert (spec.memory.limit_bytes, spec.job) == (2 << 30, "mine")
    assert [str(fault) for fault in faults] == ["rank:1@20", "root@5", "machine:1@10s"]
    assert faults[2].when == AtTime(10.0)
    assert type(spec).from_json(spec.to_json()) == spec


def test_how_long_a_job_may_stand_still_comes_from_the_options(
    script: str, options: list[TrainOptions]
) -> None:
    accepted("train", script, "--hang", "2s", "--stall", "20min", "--startup", "1h")
    accepted("train", script)
    given, usual = options[0].spec, options[1].spec
    assert given.limits == WatchLimits(hang_s=2.0, stall_s=1200.0, startup_s=3600.0)
    assert usual.limits == WatchLimits()


def test_a_job_is_named_after_its_script() -> None:
    assert job_name(Path("examples/gpt2_tiny.py"), "a1") == "gpt2_tiny-a1"
    assert job_name(Path("__ ü.py"), "a1") == "job-a1"
    assert len(job_name(Path("x" * 99), "a1b2c3")) == 32


def test_an_agent_never_talks_in_the_open(tmp_path: Path) -> None:
    common = ("agent", "--store", "etcd://h:1", "--job", "j")
    assert "agents need credentials" in refused(*common)
    assert "no file" in refused(*common, "--secret", str(tmp_path / "none"))
    assert "needs --tls-certificate and --tls-key" in refused(*common, "--tls-ca", "ca.pem")
    assert "write a store as etcd://" in refused("agent", "--store", "embedded", "--job", "j")
    assert "--wait" in refused(*common, "--secret", __file__, "--wait", "soon")


def test_kill_and_status_name_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no run under out" in refused("kill", "--machine", "1")
    assert "no run under out" in refused("status")
    assert "give one of" in refused("kill", "--machine", "1", "--root")
    assert "--signal" in refused("kill", "--rank", "1", "--signal", "HUP")
    assert "can only be killed" in refused("kill", "--store", "--signal", "STOP")
    assert "name the job's store" in refused("status", "--job", "j")
    assert "no run.json" in refused("status", "--run", str(tmp_path))
    run = {"job": "j", "pid": 0, "nodes": 2, "ranks_per_node": 1, "store": "etcd://127.0.0.1:1"}
    (tmp_path / "run.json").write_text(json.dumps(run))
    here = ("--run", str(tmp_path))
    assert "use 0..1" in refused("kill", "--machine", "2", *here)
    assert "no live process for machine 1" in refused("kill", "--machine", "1", *here)
    assert "its launcher does not run" in refused("kill", "--store", *here)
    assert "cannot be asked" in refused("status", *here)
    result = {"job": "j", "outcome": "finished", "iterations": 9, "wall_s": 3.0}
    result |= {"recoveries": [], "final_state_sha256": "ab" * 32}
    (tmp_path / "result.json").write_text(json.dumps(result))
    shown = CliRunner().invoke(app, ["status", *here])
    assert "finished" in shown.output
    assert json.loads(CliRunner().invoke(app, ["status", "--json", *here]).output) == result


def test_the_command_line_loads_no_torch_for_its_help() -> None:
    heavy = ("castor_configs.job_file", "torch", "deepspeed", "etcd3", "simpy", "numba", "numpy")
    code = (
        "import sys; from typer.testing import CliRunner; from castor.app import app; "
        "r = CliRunner().invoke(app, ['train', '--help']); assert r.exit_code == 0; "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_how_traffic_is_scheduled_comes_from_the_options(
    script: str, options: list[TrainOptions]
) -> None:
    accepted("train", script, "--scheme", "none")
    arguments = ("--mu", "0.8", "--buffer", "4MB", "--sub-buffers", "8", "--paced-copy", "400mbit")
    accepted("train", script, "--scheme", "pipelined", "--send", "nccl", *arguments)
    plain, chosen = (found.spec for found in options)
    assert plain.traffic == TrafficOptions(scheme="none")
    assert plain.device == DeviceOptions()
    given = TrafficOptions(
        scheme="pipelined", send="nccl", mu=0.8, buffer_bytes=4_000_000, sub_buffers=8
    )
    assert chosen.traffic == given
    assert chosen.device == DeviceOptions(maker=PACED_DEVICE, paced_copy_bps=400_000_000)
    assert JobSpec.from_json(chosen.to_json()) == chosen


@pytest.mark.parametrize("name", ["", "A b", "absent0"])
def test_a_cluster_that_is_not_there_leaves_no_run_behind(
    script: str, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "run"
    with pytest.raises(InputError) as raised:
        CliRunner().invoke(
            app,
            ["train", script, "--cluster", name, "--out", str(out)],
            catch_exceptions=False,
        )
    # Without root it says so, of the same option.
    assert raised.value.key == "--cluster"
    assert not out.exists()
