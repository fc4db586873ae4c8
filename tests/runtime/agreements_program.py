"""Ranks that tell each other what they have learned and loaded, for test_agreements.py.

    python agreements_program.py FOLDER

FOLDER/cases.json says for each case what each rank knows, and what each has loaded. The ranks are
forked from this process; each writes what they agreed on into FOLDER.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist

from castor_policy.chunk_schedule import Link
from castor_runtime.trainer.agreements import (
    DisagreementError,
    Learned,
    agree_on_learned,
    check_shared,
)


def learned(said: dict[str, Any] | None) -> Learned | None:
    if said is None:
        return None
    copy_link = said["copy_link"]
    return Learned(
        Link(**said["link"]),
        None if copy_link is None else Link(**copy_link),
        tuple(said["spans_ns"]),
    )


def complaint(shared: dict[str, Any]) -> str:
    try:
        check_shared(shared, dist.group.WORLD)
    except DisagreementError as error:
        return str(error)
    return ""


def run(rank: int, cases: dict[str, dict[str, list[Any]]], folder: Path) -> None:
    world = len(next(iter(cases["learned"].values())))
    dist.init_process_group("gloo", f"file://{folder / 'store'}", rank=rank, world_size=world)
    found: dict[str, dict[str, Any]] = {"learned": {}, "loaded": {}}
    for name, known in cases["learned"].items():
        agreed = agree_on_learned(learned(known[rank]), dist.group.WORLD)
        found["learned"][name] = None if agreed is None else asdict(agreed)
    for name, loaded in cases["loaded"].items():
        found["loaded"][name] = complaint(loaded[rank])
    (folder / str(rank)).write_text(json.dumps(found))
    dist.destroy_process_group()


def main() -> None:
    folder = Path(sys.argv[1])
    cases = json.loads((folder / "cases.json").read_text())
    pids = []
    for rank in range(len(next(iter(cases["learned"].values())))):
        if (pid := os.fork()) == 0:
            run(rank, cases, folder)
            os._exit(0)
        pids.append(pid)
    ends = [os.waitpid(pid, 0)[1] for pid in pids]
    sys.exit(int(any(ends)))


if __name__ == "__main__":
    main()
