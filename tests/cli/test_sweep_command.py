"""`castor sweep` as a process: what it prints, and what a kill or Ctrl-C leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from castor.app import app, main

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-c", "from castor.app import main; main()", "sweep"]


def many_points(percents: range) -> list[str]:
    """Two points of a year each for every failure rate."""
    rates = ",".join(f"{percent}%/day" for percent in percents)
    over = ["--over", f"failures.rate={rates}", "--over", "replicas=2,3"]
    return ["opt-175b", *over, "--seeds", "20", "--set", 'duration="365d"']


# Enough work that a sweep lasts for seconds: an outage test must come in the middle of it.
LONG = many_points(range(10, 16))
# Is interrupted, and must not be over before that on a machine that is busy elsewhere.
ENDLESS = many_points(range(10, 150))
LONG_POINTS = 12
SHORT = ["opt-175b", "--over", "replicas=1,2", "--seeds", "2", "--set", 'duration="9d"']


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["sweep", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def finished(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the finished points: a file that was written again has another inode or time."""
    states = [(file.name, file.stat()) for file in (folder / "points").glob("[!.]*.json")]
    return {name: (state.st_ino, state.st_mtime_ns) for name, state in states}


@contextmanager
def started(
    folder: Path, jobs: int, arguments: Sequence[str] = LONG
) -> Iterator[subprocess.Popen[str]]:
    """Start the long sweep in a process group of its own, as a terminal does."""
    process = subprocess.Popen(
        [*COMMAND, *arguments, "--jobs", str(jobs), "--out", str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background jobs ignore Ctrl-C, and so would whatever they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - a child that only execs
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_until(
    condition: Callable[[], bool], what: str, process: subprocess.Popen[str] | None = None
) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process is None or process.poll() is None, process and process.communicate()
        assert time.monotonic() < end, f"still not {what}"
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_json_is_the_file_and_the_talk_goes_to_stderr(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["sweep", *SHORT, "--jobs", "1", "--json", "--out", str(tmp_path)]
    )
    document = json.loads(result.stdout)
    assert document == json.loads((tmp_path / "sweep.json").read_text())
    assert document["parameters"] == {"replicas": [1, 2]}
    assert "2 points, 2 to run" in result.stderr
    again = CliRunner().invoke(
        app, ["sweep", *SHORT, "--jobs", "1", "--json", "--out", str(tmp_path)]
    )
    assert again.stdout == result.stdout
    assert "2 points, 0 to run; 2 are there already, unchanged" in again.stderr
    assert {file.name for file in tmp_path.iterdir()} == {
        "points",
        "provenance.json",
        "sweep.csv",
        "sweep.json",
        "sweep.pdf",
        "sweep.png",
    }


def test_the_table_fits_a_terminal(tmp_path: Path) -> None:
    shown = run(*SHORT, "--jobs", "1", "--out", str(tmp_path))
    assert "replicas" in shown
    assert "castor" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_without_out_the_folder_is_named_by_the_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(*SHORT, "--jobs", "1")
    assert (tmp_path / "sweep-opt-175b" / "sweep.csv").is_file()


def test_a_bad_point_is_one_clear_error_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["sweep", "opt-175b", "--over", "replicas=2,500", "--jobs", "1"]
    monkeypatch.setattr("sys.argv", ["castor", *arguments, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "point replicas=500" in said.err
    assert "Traceback" not in said.err
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_killed_sweep_goes_on_and_gives_the_same_bytes(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with started(killed, jobs=2) as process:
        wait_until(lambda: len(finished(killed)) >= 4, "4 points finished", process)
        workers = children(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        # The workers see that nobody waits for them; without that they would stay for ever.
        wait_until(lambda: not any(map(alive, workers)), "all workers gone")
    assert len(workers) >= 2
    kept = finished(killed)
    assert 4 <= len(kept) < LONG_POINTS, "the kill came after the end: make the points longer"
    assert not (killed / "sweep.csv").exists()

    command = [*COMMAND, *LONG, "--jobs", "2", "--out"]
    resumed = subprocess.run(
        [*command, str(killed)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    expected = f"{LONG_POINTS - len(kept)} to run; {len(kept)} are there already"
    assert expected in resumed.stderr
    after = finished(killed)
    assert len(after) == LONG_POINTS
    assert kept.items() <= after.items(), "a finished point was run twice"

    command[command.index("--jobs") + 1] = "1"
    subprocess.run([*command, str(whole)], cwd=ROOT, capture_output=True, check=True)
    for name in ("sweep.csv", "sweep.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    for name in after:
        assert (killed / "points" / name).read_bytes() == (whole / "points" / name).read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_says_how_to_go_on(tmp_path: Path, jobs: int) -> None:
    with started(tmp_path, jobs, ENDLESS) as process:
        wait_until(lambda: len(finished(tmp_path)) >= 2, "2 points finished", process)
        interrupt(process)
    assert not list((tmp_path / "points").glob("*.unfinished"))


@pytest.mark.long
def test_ctrl_c_while_the_workers_start_is_as_quiet(tmp_path: Path) -> None:
    with started(tmp_path, 2, ENDLESS) as process:
        # Two workers, and the tracker of what they share: as soon as they are there, they import.
        wait_until(lambda: len(children(process.pid)) >= 3, "workers started", process)
        interrupt(process)


def interrupt(process: subprocess.Popen[str]) -> None:
    """Send what a terminal sends for Ctrl-C, and check how the sweep ends."""
    workers = children(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    wait_until(lambda: not any(map(alive, workers)), "all workers gone")
