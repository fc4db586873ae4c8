"""Speed and memory of the cluster simulator, each beside plain simpy in the same run.

    python benchmarks/cluster_simulator.py [--out DIR]

The machine is shared and noisy: read the ratios. CPU time, best of several runs; the failures are
drawn within the time that is measured. What each figure must reach stands in its row.
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import simpy

from castor_analysis.provenance import provenance
from castor_sim.run import Engine, run_once
from castor_sim.setup import Setup, load_setup

EXPERIMENT = "gpt2-100b-p4d"
OPT_RATE = 0.015  # machines failing a day (OPT-175B)
TIMEOUTS = 200_000


def setup_of(machines: int, days: float, *changes: str) -> Setup:
    """The paper's job on `machines` machines, 1.5 % of them failing a day, half for good."""
    return load_setup(
        EXPERIMENT,
        (
            f"machines={machines}",
            "failures.process=poisson",
            f"failures.per_day={machines * OPT_RATE}",
            "failures.hardware_share=0.5",
            f'duration="{days}d"',
            *changes,
        ),
    )


def best(work: Callable[[], object], runs: int, clock: Callable[[], float]) -> float:
    """Time `work` several times; return the shortest."""
    times = []
    for _ in range(runs):
        start = clock()
        work()
        times.append(clock() - start)
    return min(times)


def simpy_timeouts() -> None:
    """Plain simpy: one process that waits again and again."""
    env = simpy.Environment()

    def waits():
        for _ in range(TIMEOUTS):
            yield env.timeout(1)

    env.process(waits())
    env.run()


def peak_bytes(days: float) -> int:
    """Peak of Python's memory for a run over `days` by the simpy engine."""
    setup = setup_of(2048, days)
    tracemalloc.start()
    run_once(setup, "gemini", 1, Engine.SIMPY)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def measure() -> list[tuple[str, float, str, str]]:
    """Return rows of (what, value, unit, what it must reach)."""
    rows: list[tuple[str, float, str, str]] = []
    cpu = time.process_time
    timeout_s = best(simpy_timeouts, 3, cpu) / TIMEOUTS
    rows.append(("plain simpy, one timeout", timeout_s * 1e6, "us CPU", ""))

    year = setup_of(2048, 365)
    tally = run_once(year, "gemini", 1)
    failures = tally.software_failures + tally.hardware_failures
    simpy_s = best(lambda: run_once(year, "gemini", 1, Engine.SIMPY), 3, cpu)
    rows.append(
        (
            f"(a) simpy engine, 2,048 machines, a year, {failures} failures",
            simpy_s,
            "s CPU",
            "< 1 s",
        )
    )
    rows.append(
        ("    per failure, in plain simpy timeouts", simpy_s / failures / timeout_s, "x", "")
    )

    large = setup_of(16_384, 365)
    tally = run_once(large, "gemini", 1)
    failures = tally.software_failures + tally.hardware_failures
    jump_s = best(lambda: run_once(large, "gemini", 1), 5, cpu)
    rows.append(
        (
            f"(b) jump engine, 16,384 machines, a year, {failures} failures",
            jump_s * 1e3,
            "ms CPU",
            "< 50 ms",
        )
    )
    rows.append(
        ("    per failure, in plain simpy timeouts", jump_s / failures / timeout_s, "x", "")
    )

    paper = setup_of(16, 365)

    def thousand() -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda seed: run_once(paper, "gemini", seed), range(1000)))

    rows.append(
        (
            "    1,000 replications of the 16-machine job, a year, 2 threads",
            best(thousand, 3, time.perf_counter),
            "s wall",
            "< 2 s",
        )
    )

    short = setup_of(16, 20, "failures.per_day=2.0")
    assert run_once(short, "gemini", 1, Engine.EXACT) == run_once(short, "gemini", 1, Engine.SIMPY)
    assert run_once(short, "gemini", 1) == run_once(short, "gemini", 1, Engine.SIMPY)
    exact_s = best(lambda: run_once(short, "gemini", 1, Engine.EXACT), 2, cpu)
    closed_s = best(lambda: run_once(short, "gemini", 1, Engine.SIMPY), 5, cpu)
    short_jump_s = best(lambda: run_once(short, "gemini", 1), 5, cpu)
    rows.append(
        ("(c) exact iterations, 16 machines, 20 days: identical result in", exact_s, "s CPU", "")
    )
    rows.append(("    exact over simpy engine", exact_s / closed_s, "x", ""))
    rows.append(("    exact over jump engine", exact_s / short_jump_s, "x", ""))

    # Failures come in blocks of bounded size; the first years fill the largest one.
    once, twice = peak_bytes(16 * 365), peak_bytes(32 * 365)
    rows.append(("(d) peak memory, simpy engine, 2,048 machines, 16 years", once / 1e6, "MB", ""))
    rows.append(("    32 years over 16 years", twice / once, "x", "about 1"))
    return rows


def main() -> None:
    """Measure, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write cluster_simulator.json here")
    out = parser.parse_args().out
    rows = measure()
    for what, value, unit, goal in rows:
        print(f"{what:72s} {value:10.3f} {unit:8s} {goal}")
    if out:
        out.mkdir(parents=True, exist_ok=True)
        document = {
            "command": "python benchmarks/cluster_simulator.py",
            "seed": 1,
            "provenance": provenance(),
            "rows": [
                dict(zip(("what", "value", "unit", "goal"), row, strict=True)) for row in rows
            ],
        }
        (out / "cluster_simulator.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
