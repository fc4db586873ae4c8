"""Ranks whose groups are replaced, for test_swapped_groups.py; torch.distributed as users call it.

    python groups_program.py PORT FOLDER

Three ranks, in generation 1. Rank 1 stops itself while the others wait for it; a spare, which was
built as rank 0, takes its place in generation 2. Rank 1 goes on at the end. All are forked from
this process, and meet at the store at PORT. What each saw goes into FOLDER as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch._C._distributed_c10d import TCPStore

from castor_runtime.trainer.collective_count import count
from castor_runtime.trainer.swap.errors import CannotSwapError, LostRankError
from castor_runtime.trainer.swap.groups import Connection, Groups

SIZE = 3


def summed(value: float, group: Any = None) -> float:
    tensor = torch.tensor([value])
    dist.all_reduce(tensor, group=group)
    return float(tensor)


def collectives(groups: list[Any]) -> dict[str, Any]:
    """What ranks make of each other, in each way of asking."""
    rank = dist.get_rank()
    objects: list[Any] = [None] * SIZE
    dist.all_gather_object(objects, {"rank": rank})
    flat = torch.zeros(SIZE, dtype=torch.int64)
    dist.all_gather_into_tensor(flat, torch.tensor([rank]))
    part = torch.zeros(1)
    dist.reduce_scatter_tensor(part, torch.arange(3.0))
    work = dist.all_reduce(torch.ones(1), async_op=True)
    work.wait()
    dist.barrier()
    dist.monitored_barrier(timeout=timedelta(seconds=60))
    pieces = [torch.zeros(1) for _ in range(SIZE)]
    dist.all_gather(pieces, torch.tensor([float(rank)]))
    within = functional.all_reduce(torch.ones(1), "sum", dist.group.WORLD)
    return {
        "rank": rank,
        "size": dist.get_world_size(),
        "backends": [dist.get_backend(), *(dist.get_backend(one) for one in groups if member(one))],
        "objects": objects,
        "flat": flat.tolist(),
        "scattered": float(part),
        "gathered": [float(one) for one in pieces],
        "functional": float(within),
        "in groups": [
            [dist.get_rank(one), dist.get_world_size(one), summed(10.0**rank, one)]
            if member(one)
            else None
            for one in groups
        ],
    }


def member(group: Any) -> bool:
    return group is not dist.GroupMember.NON_GROUP_MEMBER


def raised(what: Any) -> str:
    try:
        return f"returned {what()}"
    except (CannotSwapError, LostRankError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def live(rank: int, spare: bool, out: Path) -> None:
    port = int(sys.argv[1])
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(SIZE), MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = "1"  # nobody listens: no trainer holds a store
    store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=120))
    mine = Groups(None if spare else lambda: Connection(store, 1))
    mine.install()
    dist.init_process_group(backend="gloo", timeout=timedelta(hours=1))
    groups = [dist.new_group([0, 1]), dist.new_group([2]), dist.new_group(backend="gloo")]
    said: dict[str, Any] = {}
    if spare:
        said["alone"] = [summed(1.0), dist.get_world_size()]
        said["as rank 2"] = raised(lambda: mine.connect_all(store, 2, 2))
        store.set("spare", b"ready")
        store.wait(["ended"])
        rank = 1
    else:
        said["first"] = collectives(groups)
        if rank == 1:
            store.set("paused", str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
            said["woken"] = raised(lambda: summed(1.0))
            said["older"] = raised(lambda: mine.connect_all(store, 1, 1))
            out.write_text(json.dumps(said))
            return
        done = dist.all_reduce(torch.ones(1), async_op=True, group=groups[0] if not rank else None)
        ended: list[float] = []
        store.wait(["paused", "spare"])

        def end() -> None:
            time.sleep(0.3)
            ended.append(time.monotonic())
            mine.end_all(1)
            store.set("ended", b"")

        threading.Thread(target=end).start()
        said["wait"] = raised(lambda: summed(1.0))
        said["seconds"] = time.monotonic() - ended[0]
        said["call"] = raised(lambda: summed(1.0, groups[2]))
        said["counted"] = count(())
    began = time.monotonic()
    mine.let_go_all()
    mine.connect_all(store, 2, rank)
    said["connecting"] = time.monotonic() - began
    mine.end_all(1)
    if not spare:
        said["handle"] = raised(done.wait)
    said["second"] = collectives(groups)
    out.write_text(json.dumps(said))


def fork(rank: int, name: str, spare: bool = False) -> int:
    if pid := os.fork():
        return pid
    try:
        live(rank, spare, Path(sys.argv[2], name))
        os._exit(0)
    finally:  # whatever is raised, this is no second parent
        traceback.print_exc()
        os._exit(1)


def main() -> None:
    ranks = [fork(rank, str(rank)) for rank in range(SIZE)]
    spare = fork(0, "spare", spare=True)
    try:
        for pid in (ranks[0], ranks[2], spare):
            assert os.waitpid(pid, 0)[1] == 0
        os.kill(ranks[1], signal.SIGCONT)
        assert os.waitpid(ranks[1], 0)[1] == 0
    finally:
        for pid in (*ranks, spare):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


main()
