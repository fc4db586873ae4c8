"""State in places of its own is held, or refused by name: real engines, one rank."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.long  # each starts real processes

PROGRAM = str(Path(__file__).with_name("held_program.py"))
ITERATIONS = 7
STOP_AT = 5


class Trial:
    """Runs one mode of the program in one cluster of one rank."""

    def __init__(self, make_cluster: Callable[..., Any], folder: Path, mode: str) -> None:
        self._make = make_cluster
        self._folder = folder
        self._mode = mode

    def _options(self, name: str, *more: int) -> tuple[dict[str, Any], Path]:
        out = self._folder / f"{name}.json"
        arguments = [PROGRAM, self._mode, str(out), str(ITERATIONS), *map(str, more)]
        return {"arguments": arguments}, out

    def whole(self) -> Any:
        """Train without a failure."""
        options, out = self._options("whole")
        self._make(1, 1).run("script", options).results()
        return json.loads(out.read_text())

    def killed(self, wait_for: int = STOP_AT) -> dict[str, Any]:
        """Train, be killed within an iteration, and train on to the end."""
        cluster = self._make(1, 1)
        options, _ = self._options("first", STOP_AT)
        first = cluster.run("script", options)
        first.wait_completed(wait_for)
        first.kill()
        options, out = self._options("again")
        cluster.run("script", options).results()
        return dict(json.loads(out.read_text()))


@pytest.fixture
def trial(make_cluster: Callable[..., Any], tmp_path: Path) -> Callable[[str], Trial]:
    return lambda mode: Trial(make_cluster, tmp_path, mode)


def end(result: dict[str, Any]) -> dict[str, Any]:
    return {key: result[key] for key in ("cursor", "sha256", "torch", "lr", "critic")}


def test_training_goes_on_from_a_deepspeed_checkpoint(trial: Callable[[str], Trial]) -> None:
    trial("pretrain")._make(1, 1).run("script", trial("pretrain")._options("none")[0]).results()
    whole = trial("pretrained").whole()
    assert whole["start"] == 3, "the iterations that are done, not those that Castor saw"
    assert whole["cursor"] == 2 * ITERATIONS, "no micro-batch counts as an iteration"
    again = trial("pretrained").killed()
    assert again["start"] == STOP_AT
    assert end(again) == end(whole)
    assert whole["warnings"] == []


@pytest.mark.parametrize("mode", ["own_state_dict", "wrapped"])
def test_state_in_places_of_its_own_is_held(trial: Callable[[str], Trial], mode: str) -> None:
    whole, again = trial(mode).whole(), trial(mode).killed()
    assert again["start"] == STOP_AT
    assert end(again) == end(whole)
    found = whole["warnings"]
    said = "the optimizer's attribute inner.seen (deque) changes from step to step"
    assert [said in warning for warning in found] == [True] * (mode == "wrapped"), found


@pytest.fixture
def compiled_cpu_adam(tmp_path: Path) -> Path:
    """The C++ part of DeepSpeedCPUAdam, in one piece and without optimizing: a minute or less."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or ""
    headers = Path(sysconfig.get_path("include"))
    if not compiler or not (headers / "Python.h").exists():
        pytest.skip(
            "DeepSpeedCPUAdam is compiled where it is used, and there is no C++ compiler, or no "
            "Python.h: bash tests/install-programs.sh"
        )
    found = importlib.util.find_spec("deepspeed")
    assert found is not None
    assert found.origin is not None
    sources = Path(found.origin).parent / "ops" / "csrc"
    whole, program = tmp_path / "whole.cpp", tmp_path / "cpu_adam.so"
    whole.write_text('#include "adam/cpu_adam_impl.cpp"\n#include "adam/cpu_adam.cpp"\n')
    of_torch = Path(torch.__file__).parent
    include = of_torch / "include"
    done = subprocess.run(
        [
            *(compiler, "-std=c++20", "-O0", "-w", "-fPIC", "-shared", "-fopenmp"),
            *("-DTORCH_EXTENSION_NAME=cpu_adam", f"-I{sources}", f"-I{sources / 'includes'}"),
            *("-isystem", str(include), "-isystem", str(include / "torch/csrc/api/include")),
            *("-isystem", str(headers), str(whole), "-o", str(program)),
            *(f"-L{of_torch / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return program


@pytest.mark.timeout(600)  # nearly all of it is the compiler's
def test_a_compiled_cpu_adam_goes_on_bit_for_bit(
    trial: Callable[[str], Trial], compiled_cpu_adam: Path
) -> None:
    """Its running powers of beta differ from `pow`'s by an ulp, and are nowhere in its state."""
    mode = f"cpu_adam={compiled_cpu_adam}"
    whole, again = trial(mode).whole(), trial(mode).killed()
    assert again["start"] == STOP_AT
    assert end(again) == end(whole)


def test_what_cannot_be_held_is_refused(trial: Callable[[str], Trial]) -> None:
    expected = (
        "this one has no optimizer",
        "state['other'] is a DeepSpeed engine",
        "state['model'] is a module whose parameters ZeRO-3 has partitioned",
        "this process has a Checkpointer already",
        "another DeepSpeed engine trains in this process (Sequential, 4 parameters)",
    )
    found = trial("refused").whole()
    assert len(found) == len(expected)
    for said, words in zip(found, expected, strict=True):
        assert words in said


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("late", ["state['late'] (Cursor) changes", "state['schedule'] (CosineAnnealingLR) chang"]),
        (
            "unheld",
            [
                "a DataLoader(num_workers=0) of Data takes its seed from torch's own generator",
                "its position is not checkpointed",
                "the averaged weights of AveragedModel",
                "the learning-rate schedule CosineAnnealingLR is not checkpointed",
                "the loss scale of GradScaler",
                "the optimizer SGD trains beside the engine",
            ],
        ),
    ],
)
def test_what_is_in_nobodys_state_is_named_at_the_start(
    trial: Callable[[str], Trial], mode: str, expected: list[str]
) -> None:
    whole = trial(mode).whole()
    found = whole["warnings"]
    assert len(found) == len(expected), found
    for words in expected:
        assert any(words in warning for warning in found), found
    if mode == "late":
        assert "load a DeepSpeed checkpoint before Checkpointer.resume()" in whole["refused"]
