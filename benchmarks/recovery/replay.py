"""What failures cost in the long run: effective training time ratios, measured and simulated.

    python benchmarks/recovery/replay.py              about 22 minutes on 2 cores
    python benchmarks/recovery/replay.py --quick      a look, about 5 minutes
    python benchmarks/recovery/replay.py --publish    keeps what it found in docs/results

A trainer is killed once in 60 iterations (a mean time between failures of about an hour at the
paper's 62 s an iteration) and once in 10, at the same instants in each run: Castor without a
restart, Castor with one, and HighFreq (DeepSpeed's checkpoints to storage as often as Eq. 2
allows). Iterations are stretched by a sleep, so that all runs go on beside each other. The
simulator's exact engine is given the same instants, and what docs/results/recovery.json has
measured of recoveries.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent))

from replay_run import IN_PLACE, RANKS, RESTART, STORAGE, WAYS, Job, Measured, measure
from rich.console import Console
from scale import PAPER_CHECKPOINT_S, PAPER_ITERATION_S
from tables import Table

from castor_analysis.compare.ettr_model import Blow, over_phases
from castor_analysis.provenance import provenance
from castor_configs.atomic import write_text
from castor_sim.strategy_costs import StrategyCosts
from castor_sim.tally import Operations

NAME: Final = "replay"
DOCS: Final = Path(__file__).resolve().parents[2] / "docs" / "results"
REPLICAS: Final = ((0, 1), (1, 0), (2, 3), (3, 2))
NAMES: Final = {
    IN_PLACE: "Castor, trainer killed, in place with a warm spare",
    RESTART: "Castor, trainer killed",
    STORAGE: "HighFreq, DeepSpeed, cold",
}
"""As docs/results/recovery.json names what was measured of each."""


def simulate(one: Measured, known: dict[str, Any]) -> float:
    """Return the ratio that the exact engine finds for the same failures.

    Args:
        one: whose failures, wall time and iteration; nothing else of it is looked at.
        known: docs/results/recovery.json.
    """
    job = one.job
    system = next(each for each in known["systems"] if each["name"] == NAMES[job.way])
    iteration_ns = _ns(one.iteration_s)
    if job.way == STORAGE:
        transfer_s = job.iteration_s * PAPER_CHECKPOINT_S / PAPER_ITERATION_S
        built_s = median(system["parts_s"]["built"])
        first_s = system["restart_s"]["median"] - median(system["parts_s"]["loaded"])
        profile = StrategyCosts(
            iteration_ns=iteration_ns,
            storage_every=max(job.every, -(-_ns(transfer_s) // iteration_ns)),
            storage_transfer_ns=_ns(transfer_s),
            retrieve_storage_ns=_ns(transfer_s),
            warm_up_ns=_ns(built_s + first_s - system["iteration_s"]),
        )
        exit_ns = 0  # the restart is counted from the kill
    else:
        parts = {name: one["median"] for name, one in system["castor_parts_s"].items()}
        exit_ns = _ns(parts["detection"])
        profile = StrategyCosts(
            iteration_ns=iteration_ns,
            memory_every=1,
            memory_transfer_ns=_ns(system["checkpoint_s"]["median"]),
            retrieve_own_ns=_ns(parts["retrieval"]),
            warm_up_ns=_ns(
                parts["planning"]
                + parts["restart"]
                + parts["first_iteration"]
                - system["iteration_s"]
            ),
        )
    blows = tuple(Blow(_ns(at), 0, hardware=False) for at in one.failures_s)
    return over_phases(
        profile,
        Operations(positions=RANKS, exit_ns=exit_ns),
        REPLICAS,
        blows,
        (0,) * len(blows),
        _ns(job.wall_s),
    ).ettr


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


# ---- all -----------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iteration-s", type=float, default=10.0)
    parser.add_argument("--failures", type=int, nargs=2, default=(10, 2), help="of 10 and 60")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="too few failures to quote")
    parser.add_argument("--out", type=Path, default=Path("out/replay"))
    parser.add_argument("--publish", action="store_true", help="write docs/results too")
    parser.add_argument("--one", help="(of itself: measures one run)")
    return parser.parse_args()


def jobs_of(options: argparse.Namespace) -> list[Job]:
    iteration_s, counts = options.iteration_s, dict(zip((10, 60), options.failures, strict=True))
    if options.quick:
        iteration_s, counts = 3.0, {10: 3}
    return [
        Job(way, between, failures, iteration_s, options.seed)
        for between, failures in counts.items()
        for way in WAYS
    ]


def measure_all(options: argparse.Namespace, known: dict[str, Any]) -> list[Measured]:
    """Measure all runs beside each other, each by a process of its own."""
    pace_s = -float(known["real_iteration_s"])
    children = []
    for job in jobs_of(options):
        one = json.dumps({"job": asdict(job), "pace_s": pace_s + job.iteration_s})
        command = [sys.executable, __file__, "--out", str(options.out), "--one", one]
        children.append((job, subprocess.Popen(command)))
        time.sleep(5.0)  # twenty-four processes that import at once would be slow ones
    for job, child in children:
        if child.wait():
            raise SystemExit(f"{job.name} failed: see above, and {options.out / job.name}")
    return [_read(options.out / f"{job.name}.json") for job, _ in children]


def _read(path: Path) -> Measured:
    found = json.loads(path.read_text(encoding="utf-8"))
    lists = {name: tuple(found[name]) for name in ("failures_s", "outages_s", "lost")}
    return Measured(**found | lists | {"job": Job(**found["job"])})


def table(runs: Sequence[Measured], simulated: Sequence[float]) -> Table:
    rows = [
        (
            f"one in {one.job.between} iterations, {_SAID[one.job.way]}",
            str(len(one.failures_s)),
            f"{one.job.wall_s / one.iteration_s:.0f}",
            f"{sum(one.lost) / max(1, len(one.lost)):.1f}",
            f"{median(one.outages_s) - one.iteration_s:.2f}" if one.outages_s else "",
            f"{one.ettr:.3f}",
            f"{ettr:.3f}",
            f"{ettr - one.ettr:+.3f}",
        )
        for one, ettr in zip(runs, simulated, strict=True)
    ]
    return Table(
        "Effective training time ratio",
        (
            "a failure",
            "failures",
            "iterations",
            "whole iterations lost",
            "beyond an iteration (s)",
            "measured",
            "simulated",
            "difference",
        ),
        rows,
        (
            f"{RANKS} ranks, one a node; iterations of {runs[0].iteration_s:.2f} s, by a sleep; "
            "all runs beside each other.",
            "Lost: whole iterations done again, the mean. Beyond an iteration: from the kill to "
            "the end of one that had not been done before, less an iteration; the median.",
            "HighFreq: a checkpoint is to an iteration as in the paper (480 s to 62 s), and so one "
            f"is made every {runs[0].job.every} iterations; torchrun starts all ranks anew.",
            "Half an iteration is lost to a failure whatever is done after it. So the ratio is "
            f"{1 / 1.05:.3f} at most with one in 10, and {1 / (1 + 0.5 / 60):.3f} with one in 60.",
            "Simulated: the exact engine with the same instants, this run's iteration, and the "
            "medians of docs/results/recovery.json, which are of other runs.",
        ),
    )


_SAID: Final = {
    IN_PLACE: "Castor in place",
    RESTART: "Castor, all trainers restarted",
    STORAGE: "HighFreq from storage",
}


def main() -> None:
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.one:
        one = json.loads(options.one)
        job = Job(**one["job"])
        measured = measure(job, options.out / job.name, one["pace_s"])
        write_text(options.out / f"{job.name}.json", json.dumps(asdict(measured), indent=1))
        return
    known = json.loads((DOCS / "recovery.json").read_text(encoding="utf-8"))
    began = time.monotonic()
    runs = measure_all(options, known)
    simulated = [simulate(one, known) for one in runs]
    found = table(runs, simulated)
    found.show(Console(width=160))
    command = shlex.join(["python", "benchmarks/recovery/replay.py", *sys.argv[1:]])
    about = {
        "command": command,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "seed": options.seed,
        "seconds": round(time.monotonic() - began),
        "provenance": provenance(),
        "cores": os.cpu_count(),
        "runs": [
            asdict(one) | {"ettr": one.ettr, "simulated": ettr}
            for one, ettr in zip(runs, simulated, strict=True)
        ],
    }
    page = [
        "# Failures in the long run",
        "",
        f"`{command}`, {about['date']}, commit {provenance()['commit']}, seed {options.seed}, "
        f"{about['seconds']} s; {os.cpu_count()} cores, {platform.machine()}, Python "
        f"{platform.python_version()}. All values: [{NAME}.json]({NAME}.json).",
        "",
        found.to_markdown(),
    ]
    for folder in (options.out, *([DOCS] if options.publish else [])):
        write_text(folder / f"{NAME}.json", json.dumps(about, indent=1) + "\n")
        write_text(folder / f"{NAME}.md", "\n".join(page).rstrip() + "\n")


if __name__ == "__main__":
    main()
