"""What uploads to a bucket cost training: iterations with and without one, side by side in one run.

    python benchmarks/persistent_tier.py --out out/persistent-tier
    python benchmarks/persistent_tier.py --tier s3://bucket/prefix --iterations 400

Trains the example on emulated machines with a persistent tier, by default a bucket of moto's S3
server on this machine, whose own work then counts as the uploads'. An iteration is one "with" if it
lies within the writing of a share, one "without" if it lies in none. OUT/persistent_tier.json has
the medians and their ratio; the machine may be shared and noisy, so read the ratio. With
--paced-layer-ms processors stay as free as beside a GPU: else uploads and trainers share them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from castor_configs.atomic import write_text
from castor_lab.soak.trial import Trial, train
from castor_policy.version import __version__
from castor_records.events.event import of_kind
from castor_records.events.storing import Persisted
from castor_records.events.training import IterationEnded

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "gpt2_tiny.py"
WARM_UP = 5
"""Iterations that are left out: the first ones compile, and wait for each other."""

PORT = 5971
SERVER = """
import logging, sys, time
logging.getLogger("werkzeug").setLevel(logging.ERROR)
from moto.server import ThreadedMotoServer
ThreadedMotoServer("127.0.0.1", int(sys.argv[1]), verbose=False).start()
while True:
    time.sleep(60)
"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tier", default="", help="default: a bucket of a server of its own")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--paced-layer-ms", help="layers wait so long instead of computing")
    parser.add_argument("--every", default="10s", help="how often a checkpoint is persisted")
    parser.add_argument("--out", type=Path, default=Path("out/persistent-tier"))
    return parser.parse_args()


@contextmanager
def bucket() -> Iterator[str]:
    """Yield the URL of a bucket that is there as long as the block."""
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "somebody")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "something")
    endpoint = f"http://127.0.0.1:{PORT}"
    with subprocess.Popen([sys.executable, "-c", SERVER, str(PORT)]) as server:
        try:
            made = urllib.request.Request(f"{endpoint}/bucket", method="PUT")
            for _ in range(100):
                try:
                    urllib.request.urlopen(made, timeout=10).close()
                    break
                except OSError:
                    time.sleep(0.2)
            yield f"s3://bucket/benchmark?endpoint_url={endpoint}"
        finally:
            server.kill()


def measured(trial: Trial) -> dict[str, float | int]:
    """Return iteration times in seconds, with uploads and without, and their ratio."""
    uploads = [
        (entry.time_ns - int(1e9 * (entry.event.seconds or 0.0)), entry.time_ns)
        for entry in of_kind(trial.events, Persisted)
    ]
    beside: dict[bool, list[float]] = {True: [], False: []}
    for entry in of_kind(trial.events, IterationEnded):
        event = entry.event
        if event.rank != 0 or event.iteration <= WARM_UP or not event.seconds:
            continue
        began_ns = entry.time_ns - int(1e9 * event.seconds)
        within = any(begin <= began_ns and entry.time_ns <= end for begin, end in uploads)
        touches = any(began_ns < end and begin < entry.time_ns for begin, end in uploads)
        if within or not touches:
            beside[within].append(event.seconds)
    if not all(beside.values()):
        sys.exit("no iteration of one kind: give more --iterations, or another --every")
    with_s, without_s = statistics.median(beside[True]), statistics.median(beside[False])
    return {
        "uploads": len(uploads),
        "iterations_with": len(beside[True]),
        "iterations_without": len(beside[False]),
        "median_with_s": with_s,
        "median_without_s": without_s,
        "ratio": with_s / without_s,
    }


def main() -> None:
    given = arguments()
    with bucket() if not given.tier else _given(given.tier) as tier:
        line = [f"--nodes={given.nodes}", f"--persist={tier}", f"--persist-every={given.every}"]
        line += ["--lease=3s", "--overwrite", str(EXAMPLE), f"--iterations={given.iterations}"]
        if given.paced_layer_ms is not None:
            line += ["--paced-layer-ms", given.paced_layer_ms]
        trial = train(given.out / "run", line)
    if trial.code != 0:
        sys.exit(trial.output)
    document = {
        "castor": __version__,
        "tier": tier.partition("?")[0],
        "compute": "real" if given.paced_layer_ms is None else "paced",
        **measured(trial),
    }
    write_text(given.out / "persistent_tier.json", json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1))


@contextmanager
def _given(tier: str) -> Iterator[str]:
    yield tier


if __name__ == "__main__":
    main()
