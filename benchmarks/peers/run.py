"""Measure Castor beside the systems that a user would pick today; write a table.

    make bench-peers                  all systems, 1 GiB a rank on 2 ranks and 512 MiB on 4
    python benchmarks/peers/run.py --quick --systems castor,lm-resiliency

Rounds are interleaved (each system once, then each again), so that a drift of the machine hits all.
A system runs alone, in processes of its own; its first iterations are not counted.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import measure
from report import as_markdown, print_table, summary
from rich.console import Console
from systems import SYSTEMS

from castor_analysis.provenance import commit
from castor_runtime.doctor.host import huge_pages

MIB = 1 << 20
ROOT = Path(__file__).resolve().parents[2]
FULL = ((2, 1024), (4, 512))
QUICK = ((2, 64), (4, 32))
_LIMIT_S = 400.0


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    asked = _arguments()
    asked.out = asked.out.resolve()
    unknown = sorted(set(asked.systems) - set(SYSTEMS))
    if unknown:
        raise SystemExit(f"no such systems: {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    # Ended by a signal, the system that is measured must end as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console(stderr=True, highlight=False)
    sizes = QUICK if asked.quick else FULL
    if asked.ranks:
        sizes = tuple(size for size in sizes if size[0] == asked.ranks)
    began = time.time()
    cases: list[dict[str, Any]] = []
    for ranks, mib in sizes:
        # Written after each run: it takes long, and what is measured must not be lost.
        for case in _case(ranks, mib, asked, console):
            result = _result(began, asked, [*cases, case])
            (asked.out / "peers.json").write_text(json.dumps(result, indent=1) + "\n")
            (asked.out / "peers.md").write_text(as_markdown(result))
        cases.append(case)
    print_table(result, Console(width=150, highlight=False))
    if asked.publish:
        for name in ("peers.json", "peers.md"):
            shutil.copy(asked.out / name, ROOT / "docs" / "results" / name)
    return 0


def _result(began: float, asked: argparse.Namespace, cases: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime(began)),
        "command": shlex.join(["python", "benchmarks/peers/run.py", *sys.argv[1:]]),
        "commit": commit(),
        "seconds": round(time.time() - began),
        "busy_machine": asked.busy,
        "machine": _machine(),
        "versions": {s.package: s.version for s in SYSTEMS.values()},
        "cases": cases,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench-peers")
    parser.add_argument("--quick", action="store_true", help="64 MiB on 2 ranks, 32 on 4")
    parser.add_argument("--ranks", type=int, default=0, help="only the case of that many ranks")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=4, help="timed ones in each round")
    parser.add_argument("--systems", type=lambda text: text.split(","), default=list(SYSTEMS))
    parser.add_argument("--busy", action="store_true", help="say that others used the machine")
    parser.add_argument("--publish", action="store_true", help="copy the result to docs/results")
    return parser.parse_args()


def _case(
    ranks: int, mib: int, asked: argparse.Namespace, console: Console
) -> Iterator[dict[str, Any]]:
    """Measure all systems round by round; yield what is known after each run."""
    floors: list[dict[str, float]] = []
    runs: dict[str, list[measure.Measured]] = {key: [] for key in asked.systems}
    for number in range(asked.rounds):
        out = asked.out / f"{ranks}x{mib}" / f"round-{number}"
        floors.append(measure.run_floors(ranks, mib * MIB, out / "floors"))
        for key in asked.systems:
            began = time.monotonic()
            found = measure.run(
                SYSTEMS[key], ranks, mib * MIB, asked.iterations, out / key, _LIMIT_S
            )
            runs[key].append(found)
            console.print(
                f"{ranks} ranks, round {number}: {key}, {time.monotonic() - began:.0f} s"
                + (f": {found.error}" if found.error else ""),
                markup=False,
            )
            yield {
                "ranks": ranks,
                "state_bytes": mib * MIB,
                "floors": {what: median(floor[what] for floor in floors) for what in floors[0]},
                "systems": {
                    done: summary(SYSTEMS[done], those, ranks * mib * MIB)
                    for done, those in runs.items()
                    if those
                },
                "runs": {done: [asdict(one) for one in those] for done, those in runs.items()},
            }


def _machine() -> dict[str, Any]:
    cpus = Path("/proc/cpuinfo").read_text()
    model = next((n.split(":")[1].strip() for n in cpus.splitlines() if "model name" in n), "?")
    memory = Path("/proc/meminfo").read_text().split()[1]
    return {
        "processor": model,
        "cores": cpus.count("processor\t"),
        "memory_gib": round(int(memory) / MIB, 1),
        "python": sys.version.split()[0],
        "huge_pages": huge_pages(None).found,
        "load_average": Path("/proc/loadavg").read_text().split()[0],
    }


if __name__ == "__main__":
    sys.exit(main())
