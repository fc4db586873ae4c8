"""How often a machine that is there is taken for lost, or for slow: a loaded host, stopped agents.

    python benchmarks/false_alarms.py                1,000 iterations (about 5 minutes on 2 cores)

Four emulated machines and a standby train while other processes take the processors, and one agent
after the other is stopped (SIGSTOP) for less than a lease. Nothing has failed, and all ranks do the
same: whatever is detected, and whoever is named as slow, is a false alarm. Exit code 1 if there was
one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from castor_configs.atomic import write_text
from castor_policy.version import __version__
from castor_records.event_log import merge
from castor_records.events.event import of_kind
from castor_records.events.failures import Detected
from castor_records.events.training import Slow
from castor_records.recoveries import last_iteration
from castor_runtime.launcher.odd_ranks import slow_words
from castor_runtime.launcher.run_folder import RunFolder

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "gpt2_tiny.py"
PROGRAM = (str(EXAMPLE), "--layers=1", "--hidden=32", "--sequence=32", "--batch=2")
CASTOR = str(Path(sys.executable).with_name("castor"))
MACHINES = 4
STOP_EVERY_S, STOP_FOR_S = 6.0, 2.0
"""Shorter than the default lease, and longer than a machine may be unreached."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--load", type=int, default=4, help="processes that take the processors")
    parser.add_argument("--out", type=Path, default=Path("out/false-alarms"))
    return parser.parse_args()


def stop_in_turn(run: RunFolder, training: subprocess.Popen[bytes]) -> int:
    """Stop one agent after the other until training ends; return how often."""
    times = 0
    while True:
        try:
            training.wait(STOP_EVERY_S - STOP_FOR_S)
        except subprocess.TimeoutExpired:
            record = run.record(f"node-{times % MACHINES}")
            if record is None or not record.lives:
                continue
            os.kill(record.pid, signal.SIGSTOP)
            try:
                time.sleep(STOP_FOR_S)
            finally:
                os.kill(record.pid, signal.SIGCONT)
            times += 1
        else:
            return times


def peers_lost(journal: Path) -> int:
    """Return how often an agent took another for lost, but for the end, when all leave."""
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    ends_s = lines[-1]["now_s"] - 1.0
    told = (line for line in lines if line.get("event", {}).get("@") == "events.PeerLost")
    return sum(line["now_s"] < ends_s for line in told)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    run = RunFolder(options.out / "run")
    line = [
        *(CASTOR, "train", "--nodes", str(MACHINES), "--standby", "1", "--job", "false-alarms"),
        *("--out", str(run.path), "--overwrite", "--quiet"),
        *(*PROGRAM, f"--iterations={options.iterations}"),
    ]
    load = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.load)
    ]
    began_s = time.monotonic()
    try:
        with subprocess.Popen(line) as training:
            stops = stop_in_turn(run, training)
    finally:
        for one in load:
            one.kill()
            one.wait()
    if training.returncode != 0:
        sys.exit(f"training ended with code {training.returncode}")
    events = merge(run.path.glob("agents/*/events.jsonl"))
    return {
        "castor": __version__,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "iterations": last_iteration(events),
        "seconds": round(time.monotonic() - began_s, 1),
        "load": options.load,
        "stops": stops,
        "stopped_for_s": STOP_FOR_S,
        "peers_lost": sum(map(peers_lost, run.path.glob("agents/*/journal*.jsonl"))),
        "detected": [one.event.cause for one in of_kind(events, Detected)],
        "slow": [slow_words(one.event) for one in of_kind(events, Slow)],
    }


def main() -> None:
    options = arguments()
    found = measure(options)
    write_text(options.out / "false_alarms.json", json.dumps(found, indent=2) + "\n")
    sys.stdout.write(
        f"{found['iterations']} iterations in {found['seconds']} s, {found['load']} other processes"
        f" on {found['machine']}, {found['stops']} stops of an agent for {STOP_FOR_S:g} s:\n"
        f"{len(found['detected'])} machines detected as failed, {found['peers_lost']} links lost, "
        f"{len(found['slow'])} times a rank was said to be slow, or so no more\n"
    )
    for cause in (*found["detected"], *found["slow"]):
        sys.stdout.write(f"  {cause}\n")
    sys.exit(1 if found["detected"] or found["slow"] else 0)


if __name__ == "__main__":
    main()
