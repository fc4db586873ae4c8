"""Random fault schedules on real processes, each of which must end with the right state.

    python benchmarks/soak.py                  200 seeds (`make soak`)
    python benchmarks/soak.py --seed 17        that seed again, its run folder kept
    python benchmarks/soak.py --list           what the seeds stand for, without running them

Each seed draws how the ranks lie on machines, 1 to 4 faults of processes, memory and store, and
in half of the seeds, from a stream of its own, one more: a stopped fork server, a store that
comes back empty, persistent storage that hangs or is full (a small tmpfs; mounting it takes
root), a second agent of a name, or a standby with a wrong secret. So a seed keeps what it drew
before those were known.
Run folders of seeds that failed stay in OUT/seed-N; OUT/soak.json has all verdicts.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from castor_configs.atomic import write_text
from castor_lab.soak.campaign import RANKS, Verdict, case_of, run_seed
from castor_lab.soak.trial import train
from castor_policy.version import __version__

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "gpt2_tiny.py"
PROGRAM = (str(EXAMPLE), "--layers=1", "--hidden=32", "--sequence=32", "--batch=2")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seed", type=int, help="only this one; its run folder is kept")
    parser.add_argument("--iterations", type=int, default=24)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("out/soak"))
    parser.add_argument("--list", action="store_true", help="print schedules, run nothing")
    return parser.parse_args()


def baseline(out: Path, iterations: int) -> str:
    """Return the final state's SHA-256 without failures: it is computed, never assumed."""
    script, *rest = PROGRAM
    command = [f"--nodes={RANKS}", script, f"--iterations={iterations}", *rest]
    trial = train(out / "baseline" / "run", ["--overwrite", *command])
    if trial.code != 0 or trial.sha256 is None:
        sys.exit(f"the run without failures failed:\n{trial.output}")
    return trial.sha256


def line(verdict: Verdict) -> str:
    how = "; ".join(verdict.wrong) if verdict.wrong else "right"
    lost = [one["iterations_lost"] for one in verdict.recoveries]
    return (
        f"seed {verdict.seed}: {how} after {verdict.wall_s:.1f} s, recoveries lost {lost} "
        f"iterations ({verdict.shape}) {verdict.faults}"
    )


def summary(verdicts: list[Verdict], options: argparse.Namespace, wall_s: float) -> dict[str, Any]:
    recoveries = [one for verdict in verdicts for one in verdict.recoveries]
    totals = [one["total_s"] for one in recoveries if one["total_s"] is not None]
    kept = [v for v in verdicts if v.memory_survives]
    faults: Counter[str] = Counter()
    for verdict in verdicts:
        words = verdict.faults.split("--kill ")
        faults.update(word.strip().partition("@")[0].partition(":")[0] for word in words[1:])
    return {
        "castor": __version__,
        "python": platform.python_version(),
        "iterations": options.iterations,
        "jobs": options.jobs,
        "seeds": len(verdicts),
        "failed_seeds": [verdict.seed for verdict in verdicts if verdict.wrong],
        "wall_s": round(wall_s, 1),
        "faults": dict(sorted(faults.items())),
        "faults_not_injected": sum(len(verdict.not_injected) for verdict in verdicts),
        "recoveries": len(recoveries),
        "recovery_median_s": round(statistics.median(totals), 2) if totals else None,
        "seeds_survivable_in_memory": len(kept),
        "most_iterations_lost_where_memory_survives": max(
            (one["iterations_lost"] or 0 for v in kept for one in v.recoveries), default=0
        ),
        "verdicts": [verdict.to_json() for verdict in verdicts],
    }


def main() -> int:
    options = arguments()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    if options.seed is not None:
        seeds = range(options.seed, options.seed + 1)
    if options.list:
        for seed in seeds:
            case = case_of(seed, options.iterations)
            line = [*case.options(Path("KEPT")), *case.program(["SCRIPT"])]
            print(f"seed {seed}: castor train {' '.join(line)}")
        return 0
    began_s = time.monotonic()
    sha256 = baseline(options.out, options.iterations)
    verdicts: list[Verdict] = []
    with ThreadPoolExecutor(options.jobs) as pool:
        running = {
            pool.submit(
                run_seed,
                seed,
                options.out / f"seed-{seed}",
                PROGRAM,
                options.iterations,
                sha256,
                keep=options.seed is not None,
            )
            for seed in seeds
        }
        try:
            for done in as_completed(running):
                verdicts.append(done.result())
                print(f"[{len(verdicts):3}/{len(seeds)}] {line(verdicts[-1])}", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    verdicts.sort(key=lambda verdict: verdict.seed)
    found = summary(verdicts, options, time.monotonic() - began_s)
    write_text(options.out / "soak.json", json.dumps(found, indent=1) + "\n")
    failed = found["failed_seeds"]
    right = len(verdicts) - len(failed)
    print(f"{right} of {len(verdicts)} seeds ended right; {found['recoveries']} recoveries")
    for seed in failed:
        print(f"again: python benchmarks/soak.py --seed {seed} --iterations {options.iterations}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
