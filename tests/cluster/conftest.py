"""Real runs of `castor train`, compared with a run that nothing happened to."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from castor_lab.soak.trial import Running, Trial, running, train

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "gpt2_tiny.py"
SMALL = ("--layers=1", "--hidden=32", "--sequence=32", "--batch=2")
"""Iterations take long enough to be hit, and not longer."""

Train = Callable[..., Trial]
Baseline = Callable[[int, int], str]


def command(options: Sequence[str], iterations: int) -> list[str]:
    return [*options, str(EXAMPLE), "--iterations", str(iterations), *SMALL]


@pytest.fixture
def all_cores_busy() -> Iterator[None]:
    """As many processes that never wait as there are cores, for the time of a test."""
    burn = [sys.executable, "-c", "while True: pass"]
    burners = [subprocess.Popen(burn) for _ in range(os.cpu_count() or 2)]
    yield
    for burner in burners:
        burner.kill()
        burner.wait()


@pytest.fixture(scope="session")
def program() -> tuple[str, ...]:
    """The training program of all tests here, with its arguments but for --iterations."""
    return (str(EXAMPLE), *SMALL)


@pytest.fixture
def castor_train(tmp_path: Path) -> Train:
    """Run `castor train` with a small model to its end; nothing may be left of it."""

    def run(*options: str, iterations: int = 30) -> Trial:
        # Under load an agent may not get to renew a shorter lease.
        if "--lease" not in options:
            options = ("--lease", "3s", *options)
        trial = train(tmp_path / "run", command(options, iterations))
        sys.stdout.write(trial.output)
        assert trial.processes_left == ()
        assert trial.memory_left == ()
        return trial

    return run


@pytest.fixture
def start(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Running]:
    """Start `castor train` with a small model; the test looks on and waits for its end."""

    def begin(*options: str, iterations: int = 30, name: str = "run") -> Running:
        block = running(tmp_path / name, command(("--lease", "3s", *options), iterations))
        run = block.__enter__()
        request.addfinalizer(lambda: block.__exit__(None, None, None))
        return run

    return begin


@pytest.fixture(scope="session")
def baseline(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Baseline:
    """SHA-256 of the final state without failures, by ranks and iterations; one run each.

    Which machines the ranks are on, and how many replicas there are, must change nothing.
    """
    shared = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        shared = shared.parent  # that of all workers of pytest-xdist

    def sha256(ranks: int, iterations: int) -> str:
        known = shared / f"baseline-{ranks}-{iterations}.txt"
        with known.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not known.exists():
                folder = shared / f"baseline-{ranks}-{iterations}"
                trial = train(folder, command(("--nodes", str(ranks)), iterations))
                assert trial.code == 0, trial.output
                assert trial.recoveries == []
                assert trial.sha256 is not None
                known.write_text(trial.sha256)
            return known.read_text()

    return sha256
