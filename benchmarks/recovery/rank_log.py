"""What each rank notes as it happens, in every system alike: rank-R.jsonl, CLOCK_REALTIME."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]

_OF_A_TRAINER = ("loaded", "iteration_ended")
"""What a spare notes only once it has taken a rank's place."""


class RankLog:
    """Appends one JSON object a line; the lives of a rank follow each other in one file."""

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"rank-{rank}.jsonl"
        self._rollbacks = 0

    def rolled_back(self, iteration: int) -> None:
        """Note that this process goes on in place, from that iteration: it begins another life."""
        self._rollbacks += 1
        for kind in ("started", "built"):
            self.write(kind)
        self.write("loaded", iteration=iteration, seconds=0.0)

    def write(self, kind: str, *, time_ns: int = 0, **fields: Any) -> None:
        """Note something that happened now, or at `time_ns`."""
        life = {"pid": os.getpid(), "rollbacks": self._rollbacks}
        record = {"kind": kind, "time_ns": time_ns or time.time_ns(), **life, **fields}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def read_logs(folder: Path, ranks: int) -> list[list[Record]]:
    """Return each rank's records so far."""
    return [_read(folder / f"rank-{rank}.jsonl") for rank in range(ranks)]


def _read(path: Path) -> list[Record]:
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # a killed rank leaves half a line
            records.append(json.loads(line))
    return records


def life_of(record: Record) -> tuple[int, int]:
    """Return whose it is: of which process, and after how many rollbacks of it."""
    return int(record["pid"]), int(record["rollbacks"])


def of_kind(records: list[Record], kind: str) -> list[Record]:
    """Return the records of one kind."""
    return [record for record in records if record["kind"] == kind]


@dataclass(frozen=True, slots=True)
class Outage:
    """One failure and what it cost.

    Attributes:
        failure_ns: when the process or machine was killed.
        reached: last iteration that rank 0 had ended by then.
        resumed: iteration loaded.
        started_s: failure to the new processes' start, the last rank's.
        built_s: to the end of deepspeed.initialize, the last rank's.
        loaded_s: to the end of loading, the last rank's.
        first_s: to the end of the first iteration after it.
        new_s: to the end of the first iteration that had not been done before.
        retrieval_s: Eq. 1's t_rtvl, the slowest rank's.
    """

    failure_ns: int
    reached: int
    resumed: int
    started_s: float
    built_s: float
    loaded_s: float
    first_s: float
    new_s: float
    retrieval_s: float

    @property
    def lost(self) -> int:
        """Iterations that must be done again."""
        return self.reached - self.resumed


def find_outage(logs: list[list[Record]], failure_ns: int) -> Outage | None:
    """Return what the failure at that time cost; None while no new iteration has ended."""
    if not all(logs):
        return None
    trained = [r for r in logs[0] if r["kind"] in _OF_A_TRAINER]  # and not built, as a spare
    before = [r for r in trained if r["time_ns"] <= failure_ns]
    old = life_of(before[-1]) if before else ()
    ended = of_kind(logs[0], "iteration_ended")
    reached = max((r["iteration"] for r in ended if life_of(r) == old), default=0)
    later = [r for r in ended if r["time_ns"] > failure_ns and life_of(r) != old]
    new = next((r for r in later if r["iteration"] > reached), None)
    if new is None:
        return None
    last: dict[str, list[Record]] = {
        kind: [
            [r for r in of_kind(records, kind) if r["time_ns"] < new["time_ns"]][-1]
            for records in logs
        ]
        for kind in ("started", "built", "loaded")
    }

    def since(instant_ns: int) -> float:
        # A spare is built before it is needed.
        return max(0.0, (instant_ns - failure_ns) / 1e9)

    life = [record for record in later if life_of(record) == life_of(new)]
    return Outage(
        failure_ns=failure_ns,
        reached=reached,
        resumed=last["loaded"][0]["iteration"],
        started_s=since(max(record["time_ns"] for record in last["started"])),
        built_s=since(max(record["time_ns"] for record in last["built"])),
        loaded_s=since(max(record["time_ns"] for record in last["loaded"])),
        first_s=since(life[0]["time_ns"]),
        new_s=since(new["time_ns"]),
        retrieval_s=max(record["seconds"] for record in last["loaded"]),
    )
