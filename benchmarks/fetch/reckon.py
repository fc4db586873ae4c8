"""How long a lost machine's parts take at size: reckoned from measured pieces, not measured.

    .venv/bin/python benchmarks/fetch/reckon.py docs/results/fetch.json

Prints the tables of docs/recovery.md. A fetch goes as fast as the slowest of three: the receiver's
link, its cores (a connection's thread receives and verifies on one), and the holders, each with its
link and the cores of its turns to send.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RANKS = 8
CORES = 96
SIZES_GB = (75, 210)
LINKS = {"100 Gbit/s": 12.5, "400 Gbit/s": 50.0, "8x400 Gbit/s": 400.0}
PIN_S_PER_GB = 0.1
"""As others measured cudaHostRegister."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """What was measured, and what a machine has.

    Attributes:
        receive: GB that a core receives and verifies a second.
        send: GB that a core sends a second.
        threads: connections of all fetches of a machine to one holder.
        turns: chunks that a holder sends at once, each on a core.
    """

    receive: float
    send: float
    threads: int
    turns: int


def limits_gb_per_s(pieces: Pieces, link: float, holders: int) -> dict[str, float]:
    """Return what each of the three would let through alone, by its name."""
    cores = min(pieces.threads * holders, CORES)
    senders = holders * min(link, pieces.turns * pieces.send)
    return {
        "its link": link,
        f"its {cores} threads that receive": cores * pieces.receive,
        "holders' links" if link < pieces.turns * pieces.send else "holders' turns": senders,
    }


def reckoned(pieces: Pieces, link: float, holders: int) -> tuple[float, str]:
    """Return GB a second and what binds; of equals the one that comes first."""
    limits = limits_gb_per_s(pieces, link, holders)
    name = min(limits, key=lambda one: limits[one])
    return limits[name], name


def table(pieces: Pieces) -> list[str]:
    """Return the table, in lines of Markdown."""
    lines = [
        "| link of each machine | holders | GB/s | what binds | "
        + " | ".join(f"{size} GB: own parts, and with the replicas of others" for size in SIZES_GB)
        + " |",
        "| --- | --- | --- | --- |" + " --- |" * len(SIZES_GB),
    ]
    for name, link in LINKS.items():
        for holders in (1, 2):
            rate, binds = reckoned(pieces, link, holders)
            # With m replicas a machine holds m - 1 parts of others as large as its own.
            times = [
                f"{size / rate:.1f} s, {(holders + 1) * size / rate:.0f} s" for size in SIZES_GB
            ]
            lines.append(
                f"| {name} | {holders} (m = {holders + 1}) | {rate:.3g} | {binds} | "
                f"{' | '.join(times)} |"
            )
    return lines


def text(document: dict[str, Any]) -> str:
    """Return all that docs/recovery.md says of it."""
    found = document["pieces_gb_per_core_s"]
    pieces = Pieces(
        found["receive_and_verify"], found["send"], threads=2 * RANKS, turns=max(4, CORES // 4)
    )
    pinned = ", ".join(f"{3 * size * PIN_S_PER_GB:.0f} s for {size} GB" for size in SIZES_GB)
    lines = [
        *table(pieces),
        "",
        f"Pieces (`{document['command']}`, {document['cores']} cores of a virtual machine,",
        f"medians of {document['rounds']} rounds of {document['mib']} MiB over loopback): a core "
        f"receives and verifies {pieces.receive:.2f} GB a second,",
        f"sends {pieces.send:.2f}, copies {found['memcpy']:.1f} and digests "
        f"{found['digest']:.1f}. Assumed: {RANKS} ranks and {CORES} such cores a machine, two",
        f"connections of each rank to each holder, {pieces.turns} turns.",
        "",
        f"Pinning is not in it: at {PIN_S_PER_GB} s a GB, as others measured it in one thread, 3 "
        f"shards (2m - 1) take {pinned}.",
        "Castor pins by four threads, beside the first iterations.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description="Reckon retrieval times from measured pieces.")
    parser.add_argument("pieces", type=Path, help="what measure.py wrote")
    sys.stdout.write(text(json.loads(parser.parse_args().pieces.read_text())))


if __name__ == "__main__":
    main()
