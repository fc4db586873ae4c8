"""Measure real runs on emulated clusters, and set them beside the simulator's predictions.

    make compare          all of it: under an hour, of which half is one run through a real trace
    make compare-short    one model at two bandwidths: under ten minutes, loose bounds
    python benchmarks/compare/run.py --list       what would be run, and for about how long
    python benchmarks/compare/run.py --resume     go on with what an interrupted one has finished

Needs root and network namespaces (docs/emulated-cluster.md). Runs lie in OUT/runs, compare.json,
compare.csv and compare.html in OUT. Exits with 1 where the errors are beyond the plan's bounds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from plan import FULL, SHORT, Plan, PlannedRun

from castor_analysis.compare.measured_run import ITERATION, read_run
from castor_configs.errors import InputError
from castor_lab.emulated_cluster import lifecycle
from castor_lab.emulated_cluster.iproute import KernelRefusedError
from castor_lab.emulated_cluster.layout import Wanted
from castor_traces.edit import slice_trace
from castor_traces.library import load_any
from castor_traces.write import write_trace

ROOT = Path(__file__).resolve().parents[2]
CASTOR = Path(sys.executable).parent / "castor"
PROGRAM = "examples/gpt2_tiny.py"
PUBLISHED = ROOT / "docs" / "results"
RESULTS = ("compare.json", "compare.csv", "compare.html")
TRIES = 2
"""A run that fails for a reason of the machine's (no memory, no port) gets another chance."""
LIMIT = 4.0
"""A run that takes so many times what is expected, and a minute, hangs."""

_BEGAN = time.monotonic()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="the plan that CI runs")
    parser.add_argument("--out", type=Path, help="default out/compare, or out/compare-short")
    parser.add_argument("--cluster", default="compare", help="name of the emulated cluster")
    parser.add_argument("--resume", action="store_true", help="keep runs that have finished")
    parser.add_argument("--only", default="", help="runs whose name holds this")
    parser.add_argument("--publish", action="store_true", help="write docs/results too")
    parser.add_argument("--list", action="store_true", help="print the plan, run nothing")
    parser.add_argument("--can-run", action="store_true", help="exit with 0 if it could run here")
    return parser.parse_args()


def say(what: str) -> None:
    """Tell on stderr what comes next."""
    print(f"{(time.monotonic() - _BEGAN) / 60:5.1f} min  {what}", file=sys.stderr, flush=True)


def cluster_of(plan: Plan, link_mbps: int, name: str) -> Wanted:
    return Wanted(
        name=name,
        nodes=plan.nodes,
        spares=plan.spares,
        bandwidth_bps=link_mbps * 10**6,
        storage_bandwidth_bps=plan.storage_mbps * 10**6,
    )


def cluster_key(run: PlannedRun) -> tuple[bool, int]:
    """Order runs by this; those of one key share a cluster."""
    return run.replay is not None, run.link_mbps


@contextmanager
def cluster_up(wanted: Wanted) -> Iterator[None]:
    """Bring a cluster up for a block; nothing of it is left afterwards, however the block ends."""
    lifecycle.up(wanted)
    try:
        yield
    finally:
        lifecycle.down(wanted.name)


def command_of(plan: Plan, run: PlannedRun, out: Path, cluster: str, iterations: int) -> list[str]:
    """Return the run as a user would type it."""
    options = [
        *("--cluster", cluster, "--nodes", plan.nodes, "--scheme", run.scheme),
        *("--buffer", plan.buffer, "--sub-buffers", plan.sub_buffers, "--mu", plan.mu),
        # As Gemini sends: out of the accelerator's memory, received through sub-buffers.
        *("--send", "nccl", "--paced-copy", f"{round(run.link_mbps * plan.copy_share)}mbit"),
        *("--standby", run.standby),
        *(word for kill in run.kills for word in ("--kill", kill)),
    ]
    if run.replay is not None:
        speedup = run.replay.span_s / run.replay.run_s
        options += ["--replay", out / "trace.csv", "--speedup", f"{speedup:g}"]
    options += ["--out", out / "runs" / run.name, "--overwrite", "--quiet"]
    program = [
        *(PROGRAM, "--layers", plan.layers, "--hidden", run.hidden),
        *("--bucket", plan.bucket(run.hidden), "--seed", plan.seed),
        *("--paced-layer-ms", f"{plan.paced_layer_ms[run.hidden]:g}", "--iterations", iterations),
    ]
    return ["train", *(str(word) for word in (*options, *program))]


def finished(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "result.json").read_text())["outcome"] == "finished")
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return False


def iterations_of(run: PlannedRun, out: Path, plan: Plan) -> int:
    """Return how many iterations a run makes; one through a trace as many as take its time."""
    if run.replay is None:
        return run.iterations
    alike = next(
        other
        for other in plan.runs
        if not (other.kills or other.replay)
        and (other.link_mbps, other.hidden, other.scheme) == (run.link_mbps, run.hidden, run.scheme)
    )
    samples = sorted(read_run(out / "runs" / alike.name).samples[ITERATION])
    trace = load_any(str(out / "trace.csv")).trace
    # Each failure takes a recovery and the iteration that it broke off.
    lost_s = 12.0 * len(trace.failures)
    return round((run.replay.run_s - lost_s) / samples[len(samples) // 2])


def train(plan: Plan, run: PlannedRun, out: Path, cluster: str) -> None:
    """Make one run; its output goes to a log beside its folder.

    Raises:
        SystemExit: it failed as often as it was tried.
    """
    log = out / "runs" / f"{run.name}.log"
    for attempt in range(1, TRIES + 1):
        command = [str(CASTOR), *command_of(plan, run, out, cluster, iterations_of(run, out, plan))]
        with log.open("w", encoding="utf-8") as file:
            file.write(shlex.join(command) + "\n")
            file.flush()
            code = watched(command, file.fileno(), 60 + LIMIT * plan.expected_s(run))
        if code == 0 and finished(out / "runs" / run.name):
            return
        say(f"{run.name} failed (exit code {code}), try {attempt} of {TRIES}")
    tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-25:])
    sys.exit(f"{run.name} failed; the end of {log}:\n{tail}")


def watched(command: list[str], output: int, limit_s: float) -> int:
    """Run a command to its end; interrupted or too late, it is asked to end and waited for."""
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return -1
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def cut_trace(plan: Plan, out: Path) -> None:
    """Write the part of a trace that is replayed; the library says how to fetch a missing one."""
    for run in plan.runs:
        if run.replay is not None:
            part = run.replay
            trace = load_any(part.trace).trace
            cut = slice_trace(trace, part.start_s, part.start_s + part.span_s)
            write_trace(cut, out / "trace.csv")


def compare(out: Path, runs: list[Path]) -> dict[str, Any]:
    """Set the runs beside their predictions; print the tables."""
    command = [str(CASTOR), "compare", *map(str, runs), "--out", str(out)]
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(code)
    document: dict[str, Any] = json.loads((out / "compare.json").read_text())
    return document


def judge(plan: Plan, document: dict[str, Any]) -> list[str]:
    """Return what is beyond the plan's bounds."""
    wrong = []
    median = document["median_error"]
    if median is None or median > plan.median_max:
        found = "none" if median is None else f"{median:.1%}"
        wrong.append(f"median error is {found}, beyond {plan.median_max:.0%}")
    for point in document["held_out"]:
        measured, simulated = point["measured"], point["simulated"]
        error = math.inf if point["error"] is None else abs(point["error"])
        if error > plan.worst_max and abs(simulated - measured) > plan.noise_s:
            what = f"{point['quantity']}: {measured:.3g} measured, {simulated:.3g} simulated"
            wrong.append(f"{what}, an error of {error:.1%}, beyond {plan.worst_max:.0%}")
    return wrong


def print_plan(plan: Plan) -> None:
    total_s = 0.0
    for run in plan.runs:
        expected_s = plan.expected_s(run)
        total_s += expected_s
        print(f"{expected_s:6.0f} s  {run.name}")
    print(f"{total_s / 60:6.1f} min in all, about")


def can_run(plan: Plan, name: str) -> int:
    """Try the smallest cluster; say why not."""
    try:
        with cluster_up(Wanted(name, 1, 0, plan.runs[0].link_mbps * 10**6, 10**7)):
            return 0
    except (InputError, KernelRefusedError, OSError) as error:
        print(error)
        return 1


def main() -> int:
    options = arguments()
    plan = SHORT if options.short else FULL
    if options.list:
        print_plan(plan)
        return 0
    if options.can_run:
        return can_run(plan, options.cluster)
    os.chdir(ROOT)  # commands then name no folder of this machine
    out: Path = options.out or Path("out") / ("compare-short" if options.short else "compare")
    (out / "runs").mkdir(parents=True, exist_ok=True)
    # Ended by a signal, the clusters and runs still go.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    wanted = [run for run in plan.runs if options.only in run.name]
    left = [run for run in wanted if not (options.resume and finished(out / "runs" / run.name))]
    say(f"{len(left)} runs, about {sum(map(plan.expected_s, left)) / 60:.0f} min")
    try:
        cut_trace(plan, out)
        done = len(wanted) - len(left)
        # What takes half of the time comes last: the other runs can be looked at meanwhile.
        in_order = sorted(left, key=cluster_key)
        for (_, link_mbps), alike in groupby(in_order, key=cluster_key):
            with cluster_up(cluster_of(plan, link_mbps, options.cluster)):
                for run in alike:
                    done += 1
                    say(f"[{done:2}/{len(wanted)}] {run.name}")
                    train(plan, run, out, options.cluster)
    except (InputError, KernelRefusedError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("compare: interrupted; --resume goes on from here", file=sys.stderr)
        return 130
    folders = [out / "runs" / run.name for run in wanted]
    document = compare(out, folders)
    if options.publish:
        for name in RESULTS:
            shutil.copy(out / name, PUBLISHED / name)
    wrong = judge(plan, document)
    for reason in wrong:
        print(f"compare: {reason}", file=sys.stderr)
    say("done")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
