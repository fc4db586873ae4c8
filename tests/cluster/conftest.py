"""Real runs of `castor train`, compared with a run that nothing happened to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from castor_lab.soak.trial import Running, Trial, running, train, warm_starts

Train = Callable[..., Trial]


@pytest.fixture
def all_cores_busy() -> Iterator[None]:
    """As many processes that never wait as there are cores, for the time of a test."""
    burn = [sys.executable, "-c", "while True: pass"]
    burners = [subprocess.Popen(burn) for _ in range(os.cpu_count() or 2)]
    yield
    for burner in burners:
        burner.kill()
        burner.wait()


@pytest.fixture(scope="session", autouse=True)
def imported_once() -> Iterator[None]:
    """All runs here are forked from one process, but for those whose interpreter must be another.

    Each would import torch and DeepSpeed by itself, longer than most of them train.
    """
    with warm_starts():
        yield


@pytest.fixture
def castor_train(tmp_path: Path, program: tuple[str, ...]) -> Train:
    """Run `castor train` with a small model to its end; nothing may be left of it."""

    def run(*options: str, iterations: int = 30) -> Trial:
        # Under load an agent may not get to renew a shorter lease.
        if "--lease" not in options:
            options = ("--lease", "3s", *options)
        line = [*options, *program, "--iterations", str(iterations)]
        trial = train(tmp_path / "run", line)
        sys.stdout.write(trial.output)
        assert trial.processes_left == ()
        assert trial.memory_left == ()
        return trial

    return run


@pytest.fixture
def start(
    tmp_path: Path, program: tuple[str, ...], request: pytest.FixtureRequest
) -> Callable[..., Running]:
    """Start `castor train` with a small model; the test looks on and waits for its end."""

    def begin(*options: str, iterations: int = 30, name: str = "run") -> Running:
        line = ["--lease", "3s", *options, *program, "--iterations", str(iterations)]
        block = running(tmp_path / name, line)
        run = block.__enter__()
        request.addfinalizer(lambda: block.__exit__(None, None, None))
        return run

    return begin
