"""How fast a part is fetched: from one holder and from two, beside bare TCP; and its pieces.

    .venv/bin/python benchmarks/fetch/measure.py                       1 GiB, over loopback
    .venv/bin/python benchmarks/fetch/measure.py --beside CHECKOUT     and another checkout's fetch
    .venv/bin/python benchmarks/fetch/measure.py --out docs/results/fetch.json

All ways take turns in each round. Read the ratios, and gigabytes a core-second: the processor's
time, which bears other work beside it better than rates do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent
ROOMS = ("policy", "configs", "records", "traces", "sim", "runtime", "lab", "analysis", "cli")
GB = 1e9


class Role:
    """A process of roles.py, of this checkout or another."""

    def __init__(self, checkout: Path, *arguments: str) -> None:
        paths = os.pathsep.join(str(checkout / room) for room in ROOMS)
        self._process = subprocess.Popen(
            [sys.executable, str(checkout / "benchmarks/fetch/roles.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )

    def hear(self) -> dict[str, Any]:
        """Return what it says next."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args} has ended")
        return dict(json.loads(line))

    def ask(self, **document: Any) -> dict[str, Any]:
        """Return what it answers."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(document) + "\n")
        self._process.stdin.flush()
        return self.hear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measured(asked: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Return seconds, and the processor's time of both sides, by way, a value a round."""
    own = HERE.parents[1]
    sizes = (str(asked.mib), str(asked.chunk_mib))
    with ExitStack() as stack:

        def role(checkout: Path, *arguments: str) -> Role:
            return stack.enter_context(Role(checkout, *arguments, *sizes))

        holders = [role(own, "holder", f"castor-fetch-{n}") for n in (0, 1)]
        receiver = role(own, "receiver", "castor-fetch-to")
        told = [holder.hear() for holder in holders]
        addresses = [str(one["address"]) for one in told]
        ways: dict[str, tuple[Role, list[Role], dict[str, Any]]] = {
            "memcpy": (receiver, [], {"way": "memcpy"}),
            "digest": (receiver, [], {"way": "digest"}),
            "bare TCP": (receiver, holders[:1], {"way": "bare", "bare": told[0]["bare"]}),
            "1 holder": (receiver, holders[:1], {"way": "fetch", "addresses": addresses[:1]}),
            "2 holders": (receiver, holders, {"way": "fetch", "addresses": addresses}),
        }
        if asked.beside is not None:
            other = role(asked.beside, "holder", "castor-fetch-other")
            into = role(asked.beside, "receiver", "castor-fetch-other-to")
            where = [str(other.hear()["address"])]
            ways["beside, 1 holder"] = (into, [other], {"way": "fetch", "addresses": where})
        found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for number in range(asked.rounds + 1):
            for way, (who, from_whom, document) in ways.items():
                before_s = sum(one.ask()["cpu_s"] for one in from_whom)
                got = who.ask(**document)
                sent_s = sum(one.ask()["cpu_s"] for one in from_whom) - before_s
                if number:  # the first one warms up
                    found[way].append({**got, "sent_cpu_s": sent_s})
        return found


def pieces(found: dict[str, list[dict[str, float]]], mib: int) -> dict[str, float]:
    """Return what reckon.py needs, in GB a core-second."""
    size_gb = (mib << 20) / GB

    def per_core_s(way: str, what: str = "cpu_s") -> float:
        return size_gb / statistics.median(one[what] for one in found[way])

    return {
        "receive_and_verify": per_core_s("1 holder"),
        "send": per_core_s("1 holder", "sent_cpu_s"),
        "memcpy": per_core_s("memcpy"),
        "digest": per_core_s("digest"),
    }


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--chunk-mib", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--beside", type=Path, help="another checkout with a benchmarks/fetch")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    found = measured(asked)
    middle = {
        way: {what: statistics.median(one[what] for one in rounds) for what in rounds[0]}
        for way, rounds in found.items()
    }
    reference = middle["1 holder"]["seconds"]
    lines = [
        "| way | seconds | beside 1 holder | receiver's core-seconds | senders' |",
        "| --- | --- | --- | --- | --- |",
    ]
    for way, one in middle.items():
        lines.append(
            f"| {way} | {one['seconds']:.3f} | {one['seconds'] / reference:.2f} | "
            f"{one['cpu_s']:.2f} | {one['sent_cpu_s']:.2f} |"
        )
    found_pieces = pieces(found, asked.mib)
    lines += [f"{name}: {rate:.2f} GB a core-second" for name, rate in found_pieces.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    if asked.out is not None:
        document = {
            "command": " ".join(["python", "benchmarks/fetch/measure.py", *sys.argv[1:]]),
            "cores": os.cpu_count(),
            "mib": asked.mib,
            "rounds": asked.rounds,
            "medians": middle,
            "pieces_gb_per_core_s": found_pieces,
        }
        asked.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
