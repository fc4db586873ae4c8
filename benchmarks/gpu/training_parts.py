"""What a GPU shows while it trains: what a checkpoint costs, and whether a restore is exact.

A GPU's own sums need not come out the same twice. So each state that a failure is to leave as it
was is compared only where two runs without one agree.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from gpu import Gpu, Line

from castor_records.event_log import merge
from castor_records.events.event import of_kind
from castor_records.events.training import IterationEnded
from castor_runtime.launcher.run_folder import RunFolder

HERE = Path(__file__).resolve().parent
CASTOR = Path(sys.executable).with_name("castor")
LIMIT_S = 240
WARM = 10
"""Iterations that are not measured: profiles are taken in them, and kernels loaded."""

OVERHEAD = 0.01
"""What a checkpoint of every iteration may cost of an iteration."""

ITERATIONS = 40
"""Of a run in whose blocks of a fourth checkpoints are made, and not, in turns."""

BLOCKED_S = 0.010
"""How long it may keep an update waiting at 10 GB a rank."""


class Runs:
    """`castor train` again and again, each into a folder of its own.

    Args:
        out: folder of them all.
        on_cpu: DeepSpeed is to train there; and emulated machines get no GPUs to themselves, of
            which there is one.
    """

    def __init__(self, out: Path, *, on_cpu: bool) -> None:
        self._environment = os.environ | ({"DS_ACCELERATOR": "cpu"} if on_cpu else {})
        self._out = out
        self._made = 0

    def train(self, job: str, *options: str, program: Sequence[str]) -> tuple[Path, dict[str, Any]]:
        """Train to the end; return the run's folder and its result.

        Raises:
            RuntimeError: it did not finish; holds the end of what it printed.
        """
        folder = self._out / f"run-{self._made}"
        self._made += 1
        told = ("--overwrite", "--quiet", "--out", str(folder), "--job", f"gpu-check-{os.getpid()}")
        command = [str(CASTOR), "train", str(HERE / job), *told, *options, "--", *program]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            env=self._environment,
        )
        if done.returncode != 0:
            said = (done.stdout + done.stderr)[-1500:]
            raise RuntimeError(f"{json.dumps(command)} failed: {said}")
        return folder, json.loads((folder / "result.json").read_text())


def training(gpu: Gpu, options: Namespace) -> list[Line]:
    """Train ZeRO-3 with one rank: twice without checkpoints, with them, and with a kill."""
    runs = Runs(options.runs / "training", on_cpu=gpu.rehearses)
    small = ("--layers", "2", "--hidden", "64", "--sequence", "32") if gpu.rehearses else ()
    iterations = 24 if gpu.rehearses else 40
    words = [*small, "--iterations", str(iterations)]
    alone = ("--nodes", "1", "--replicas", "1")
    lines: list[Line] = []
    times: list[float] = []
    states: list[str] = []
    for name, scheme in [
        ("no checkpoints", ("--scheme", "none")),
        ("no checkpoints, again", ("--scheme", "none")),
        ("a checkpoint every iteration", ()),
    ]:
        folder, result = runs.train("job.py", *alone, *scheme, program=words)
        states.append(result["final_state_sha256"])
        times.append(_iteration_s(folder))
        lines.append(Line(f"iteration, {name}", times[-1] * 1e3, "ms"))
    lines.append(Line("  beside no checkpoints", times[2] / min(times[:2]), "x"))
    _, result = runs.train("job.py", *alone, "--kill", f"rank:0@{iterations // 2}", program=words)
    lines += _recovered(result)
    return [*lines, *_same(states[:2], [states[2], result["final_state_sha256"]])]


def two_ranks(gpu: Gpu, options: Namespace) -> list[Line]:
    """Train two ranks on one GPU, whose checkpoints the CPU sends: overhead, and a kill."""
    runs = Runs(options.runs / "two-ranks", on_cpu=True)
    sizes = (0.001, 0.004) if gpu.rehearses else (1.0, 4.0, 10.0)
    pair = ("--nodes", "2", "--replicas", "2", "--scheme", "pipelined")
    seconds = ("--seconds", "0.05", "--width", "128", "--device", "cpu") if gpu.rehearses else ()
    lines: list[Line] = []
    for size in sizes:
        told = runs._out / f"times-{size:g}"
        program = [
            *("--gigabytes", f"{size:g}", "--iterations", str(ITERATIONS)),
            *("--blocks", str(ITERATIONS // 4), *seconds, "--out", str(told)),
        ]
        runs.train("state_job.py", *pair, program=program)
        found = [json.loads(one.read_text()) for one in sorted(told.glob("rank-*.json"))]
        without_s = max(one["without_s"] for one in found)
        overhead = max(one["with_s"] for one in found) / without_s - 1
        blocked_s = max(one["blocked_s"] for one in found)
        name = f"{size:g} GB a rank"
        may_differ = gpu.rehearses
        lines += [
            Line(f"{name}: an iteration without checkpoints", without_s * 1e3, "ms"),
            Line(
                f"{name}: overhead of one every iteration (at most {OVERHEAD * 100:g})",
                overhead * 100,
                "%",
                overhead <= OVERHEAD or may_differ,
            ),
            Line(
                f"{name}: an update blocked (at most {BLOCKED_S * 1e3:g})",
                blocked_s * 1e3,
                "ms",
                blocked_s <= BLOCKED_S or may_differ,
            ),
        ]
    return lines + _killed(runs, pair, [*("--gigabytes", f"{sizes[0]:g}"), *seconds])


def _killed(runs: Runs, pair: Sequence[str], program: Sequence[str]) -> list[Line]:
    words = [*program, "--iterations", "20", "--out", str(runs._out / "times")]
    states = [
        runs.train("state_job.py", *pair, program=words)[1]["final_state_sha256"] for _ in range(2)
    ]
    _, result = runs.train("state_job.py", *pair, "--kill", "rank:1@10", program=words)
    return [*_recovered(result), *_same(states, [result["final_state_sha256"]])]


def _recovered(result: dict[str, Any]) -> list[Line]:
    (recovery,) = result["recoveries"]
    return [
        Line("kill -9 of a trainer to the next iteration", recovery["seconds"]["total"], "s"),
        Line("iterations lost by it", recovery["iterations_lost"], ""),
    ]


def _same(undisturbed: Sequence[str], others: Sequence[str]) -> list[Line]:
    """Compare final states; where two undisturbed runs differ nothing can be said."""
    if len(set(undisturbed)) > 1:
        told = "DIFFER: the GPU's own sums do"
        return [Line("final states of two undisturbed runs", None, told, right=False)]
    equal = set(others) == set(undisturbed)
    return [
        Line("final states of two undisturbed runs", None, "equal"),
        Line("  and of the others", None, "equal" if equal else "DIFFERENT", equal),
    ]


def _iteration_s(folder: Path) -> float:
    run = RunFolder(folder)
    entries = merge(run.agent(name) / "events.jsonl" for name in run.agent_names())
    ended = [entry.event for entry in of_kind(entries, IterationEnded)]
    return median(event.seconds or 0.0 for event in ended if event.iteration > WARM)
