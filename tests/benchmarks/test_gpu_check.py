"""The check for a machine with a GPU, rehearsed: its first run on one is not for typing errors."""

from __future__ import annotations

import importlib
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"


@pytest.fixture(scope="module")
def check() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("check")


@pytest.mark.parametrize("name", ["race", "blocking", "copies", "spans", "sub-buffers"])
def test_a_part_runs_without_a_gpu(check: ModuleType, name: str) -> None:
    part = check.PARTS[name]
    gpu = check.Gpu(rehearses=True)
    lines = check.named(part.run)(gpu, Namespace(megabytes=2), *part.given)
    assert lines
    assert all(line.right for line in lines)


def test_the_page_says_what_is_wrong(check: ModuleType) -> None:
    line: Any = importlib.import_module("gpu").Line
    record = {
        "right": False,
        "date": "2026-11-29T00:00:00+00:00",
        "hardware": {"cores": 2, "gpu": "H200", "gpu_memory_bytes": 2**37},
        "versions": {"torch": "2.13.0"},
        "seconds": 1.0,
        "command": ["check.py"],
    }
    page = check.page({"Copies": [line("its bytes", None, "DIFFERENT", False)]}, record)
    assert "NOT all right" in page
    assert "H200 (128 GiB)" in page
    assert "| its bytes |  | DIFFERENT **wrong** |" in page


def test_a_part_that_hangs_or_fails_is_a_line(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = check.Part("Sleeps", "time:sleep", 0.2)
    monkeypatch.setitem(check.PARTS, "race", part)
    options = Namespace(out=tmp_path, megabytes=1, rehearse=True)
    (line,) = check.run("race", 60.0, options)
    assert "not done within 0 s" in line.what
    assert not line.right
    (line,) = check.run("race", 0.0, options)
    assert "LEFT OUT" in line.what
