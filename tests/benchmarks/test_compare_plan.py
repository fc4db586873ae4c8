"""What the comparison's plan has to hold, and how its runs are started; nothing is run."""

from __future__ import annotations

import importlib.util
import json
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "compare"


def load(name: str, known_as: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(known_as, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


plan = load("plan", "plan")  # run.py imports it by that name
run = load("run", "compare_benchmark_run")
PLANS = (plan.FULL, plan.SHORT)


@pytest.mark.parametrize("chosen", PLANS)
def test_every_model_has_its_baseline_and_a_scheme_to_calibrate_on(chosen: Any) -> None:
    names = [one.name for one in chosen.runs]
    assert len(set(names)) == len(names)
    quiet = [one for one in chosen.runs if not one.kills and one.replay is None]
    for hidden in {one.hidden for one in quiet}:
        links = sorted({r.link_mbps for r in quiet if r.hidden == hidden and r.scheme == "none"})
        middle = links[(len(links) - 1) // 2]
        schemes = {r.scheme for r in quiet if (r.hidden, r.link_mbps) == (hidden, middle)}
        assert {"none", "pipelined"} <= schemes
    assert all(one.iterations > plan.WARM_UP for one in quiet)


def test_the_full_plan_is_three_bandwidths_two_models_five_schemes_and_failures() -> None:
    runs = plan.FULL.runs
    quiet = {(r.link_mbps, r.hidden, r.scheme) for r in runs if not r.kills and r.replay is None}
    assert len(quiet) == 3 * 2 * 5
    assert len([r for r in runs if r.kills]) == 3
    (replayed,) = [r for r in runs if r.replay is not None]
    assert replayed.replay.run_s == 1800
    assert sum(map(plan.FULL.expected_s, runs)) < 3600
    assert sum(map(plan.SHORT.expected_s, plan.SHORT.runs)) < 480


def test_a_run_is_started_with_all_that_its_setting_is_read_from() -> None:
    (replayed,) = [one for one in plan.FULL.runs if one.replay is not None]
    words = run.command_of(plan.FULL, replayed, Path("out/x"), "lab", 40)
    options = dict(pairwise(words))
    assert words[0] == "train"
    assert words.index("examples/gpt2_tiny.py") < words.index("--layers")
    assert words.index("--paced-copy") < words.index("examples/gpt2_tiny.py")
    assert options["--cluster"] == "lab"
    assert options["--speedup"] == "89.25"
    assert options["--replay"] == "out/x/trace.csv"
    assert options["--iterations"] == "40"
    broken = next(one for one in plan.FULL.runs if one.kills)
    words = run.command_of(plan.FULL, broken, Path("out/x"), "lab", broken.iterations)
    kills = tuple(value for option, value in pairwise(words) if option == "--kill")
    assert kills == broken.kills


def test_only_a_finished_run_is_kept(tmp_path: Path) -> None:
    assert not run.finished(tmp_path)
    for text, kept in (("{", False), (json.dumps({"outcome": "failed"}), False)):
        (tmp_path / "result.json").write_text(text)
        assert run.finished(tmp_path) is kept
    (tmp_path / "result.json").write_text(json.dumps({"outcome": "finished"}))
    assert run.finished(tmp_path)


@pytest.mark.parametrize(
    ("median", "points", "wrong"),
    [
        (0.01, [(1.0, 1.02)], 0),
        (0.5, [(1.0, 1.02)], 1),
        (0.5, [(1.0, 2.9)], 2),
        (0.01, [(1.0, 2.9), (2.0, 4.5), (0.3, 0.8)], 3),
        (0.01, [(0.025, 0.056), (0.1, 0.34)], 0),  # of no account: the machine's noise
        (0.01, [(0.0, 0.5)], 1),
        (None, [], 1),
    ],
)
def test_errors_beyond_the_bounds_fail(
    median: float | None, points: list[tuple[float, float]], wrong: int
) -> None:
    held_out = [
        {
            "quantity": "recovery_total_s",
            "measured": measured,
            "simulated": simulated,
            "error": (simulated - measured) / measured if measured else None,
        }
        for measured, simulated in points
    ]
    assert len(run.judge(plan.SHORT, {"median_error": median, "held_out": held_out})) == wrong


def test_a_command_past_its_time_is_ended() -> None:
    with Path("/dev/null").open("w") as nothing:
        sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
        assert run.watched(sleeper, nothing.fileno(), 0.2) == -1
        assert run.watched([sys.executable, "-c", "raise SystemExit(3)"], nothing.fileno(), 60) == 3
