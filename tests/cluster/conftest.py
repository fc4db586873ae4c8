"""Real runs of `castor train`, compared with a run that nothing happened to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from castor_lab.soak.trial import Running, Trial, running, train

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


@pytest.fixture(autouse=True)
def forked(imported_once: None) -> None:
    """All runs here are forked."""


@pytest.fixture
def waiting(tmp_path: Path, program: tuple[str, ...]) -> Callable[[int], tuple[str, ...]]:
    """The training program, but after that iteration it waits until the test makes the file go."""
    script = Path(__file__).with_name("waiting_program.py")
    return lambda at: (str(script), str(tmp_path / "go"), str(at), *program)


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
    tmp_path: Path,
    program: tuple[str, ...],
    waiting: Callable[[int], tuple[str, ...]],
    request: pytest.FixtureRequest,
) -> Callable[..., Running]:
    """Start `castor train` with a small model; the test looks on and waits for its end."""

    def begin(
        *options: str, iterations: int = 30, name: str = "run", waits_at: int | None = None
    ) -> Running:
        trained = program if waits_at is None else waiting(waits_at)
        line = ["--lease", "3s", *options, *trained, "--iterations", str(iterations)]
        block = running(tmp_path / name, line)
        run = block.__enter__()
        request.addfinalizer(lambda: block.__exit__(None, None, None))
        return run

    return begin
