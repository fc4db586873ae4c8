"""Runs forked from one process that has imported all: as those that are started as commands."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from castor_lab.soak.trial import Trial, running, train
from castor_lab.soak.warm_start import WarmProcess

ARGUMENTS = ("--nodes", "2", "--replicas", "3", "script.py")
READ_AT_ITS_START = {"PYTHONNOUSERSITE": "1"}

SCRIPT = """
import os, sys, time
print("script", sys.argv, os.getcwd(), os.environ["OF_THE_TEST"], flush=True)
time.sleep(60)
"""


def told(trial: Trial) -> tuple[int, list[str]]:
    return trial.code, trial.output.replace(str(trial.folder), "FOLDER").splitlines()


def test_a_refusal_has_the_code_and_the_words_of_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").touch()
    with running(tmp_path / "command", ARGUMENTS, READ_AT_ITS_START) as run:
        assert isinstance(run.process, subprocess.Popen)
        command = run.wait()
    with running(tmp_path / "forked", ARGUMENTS) as run:
        assert isinstance(run.process, WarmProcess)
        forked = run.wait()
    assert told(forked) == told(command)
    assert forked.code == 2
    assert "replicas" in forked.output


def test_a_run_has_its_folder_and_environment_and_ends_by_its_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OF_THE_TEST", "its own")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    arguments = ("--nodes", "1", "--replicas", "1", str(script), "--of-the-script")
    with running(tmp_path / "run", arguments) as run:
        log = run.folder / "agents" / "node-0" / "rank-0.log"
        run.wait_until(lambda: log.exists() and log.read_text().endswith("\n"), "running")
        with pytest.raises(subprocess.TimeoutExpired):
            run.process.wait(0.0)
        assert run.process.poll() is None
        run.process.send_signal(signal.SIGTERM)
        trial = run.wait()
    said = ["script", str([str(script), "--of-the-script"]), str(tmp_path), "its own"]
    assert log.read_text().split("\n")[0] == " ".join(said)
    assert (trial.code, trial.result["outcome"]) == (128 + signal.SIGTERM, "interrupted")
    assert trial.processes_left == trial.memory_left == ()


def test_of_two_runs_each_is_told_its_own_end(tmp_path: Path) -> None:
    with running(tmp_path / "one", ARGUMENTS) as one, running(tmp_path / "two", ["--help"]) as two:
        assert (two.process.wait(60), one.process.wait(60)) == (0, 2)
    assert train(tmp_path / "three", ["--help"]).code == 0
