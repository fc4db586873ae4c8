"""What one GPU shows while it trains: what a checkpoint costs, and whether a restore is exact."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from device_parts import Line

from castor_records.event_log import merge
from castor_records.events.event import of_kind
from castor_records.events.training import IterationEnded
from castor_runtime.launcher.run_folder import RunFolder

JOB = Path(__file__).resolve().with_name("job.py")
CASTOR = Path(sys.executable).with_name("castor")
LIMIT_S = 900
WARM = 10
"""Iterations that are not measured: profiles are taken in them, and kernels loaded."""


def training(out: Path, job: Sequence[str], iterations: int) -> list[Line]:
    """Train without checkpoints, with them, and with a trainer killed in between.

    Raises:
        RuntimeError: a run did not finish; holds the end of what it printed.
    """
    kill = ["--kill", f"rank:0@{iterations // 2}"]
    runs = {
        "no checkpoints": ["--scheme", "none"],
        "a checkpoint every iteration, eager": ["--scheme", "eager"],
        "a checkpoint every iteration, pipelined": ["--scheme", "pipelined"],
        "killed and restored": ["--scheme", "pipelined", *kill],
    }
    lines: list[Line] = []
    states: dict[str, str] = {}
    times: dict[str, float] = {}
    for number, (name, options) in enumerate(runs.items()):
        folder = out / f"run-{number}"
        _train(folder, [*options, "--", *job, "--iterations", str(iterations)])
        result = json.loads((folder / "result.json").read_text())
        states[name] = result["final_state_sha256"]
        if "--kill" in options:
            recovery = result["recoveries"][0]
            lines.append(Line("recovery of a killed trainer", recovery["seconds"]["total"], "s"))
            lines.append(Line("iterations lost by it", recovery["iterations_lost"], ""))
            continue
        times[name] = _iteration_s(folder)
        lines.append(Line(f"iteration, {name}", times[name] * 1e3, "ms"))
        if len(times) > 1:
            cost = times[name] / times["no checkpoints"]
            lines.append(Line("  beside no checkpoints", cost, "x"))
    same = len(set(states.values())) == 1
    verdict = "equal" if same else "DIFFERENT"
    lines.append(Line("final states of the four runs", None, verdict, same))
    return lines


def _train(folder: Path, options: Sequence[str]) -> None:
    command = [
        str(CASTOR),
        "train",
        str(JOB),
        *("--nodes", "1", "--replicas", "1", "--overwrite", "--quiet", "--out", str(folder)),
        *("--job", f"gpu-check-{os.getpid()}"),
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{json.dumps(command)} failed: {(done.stdout + done.stderr)[-1500:]}")


def _iteration_s(folder: Path) -> float:
    run = RunFolder(folder)
    entries = merge(run.agent(name) / "events.jsonl" for name in run.agent_names())
    ended = [entry.event for entry in of_kind(entries, IterationEnded)]
    return median(event.seconds or 0.0 for event in ended if event.iteration > WARM)
