"""What no system can beat here: a copy in memory, and gloo between the ranks, warm."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist
from workload import Log, options

_ROUNDS = 4


def main() -> None:
    """Time them on all ranks at once; ranks pair up for the transfers."""
    asked = options()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    log = Log(asked.out, rank)
    mine = torch.ones(asked.state_bytes // 4)
    other = torch.zeros_like(mine)
    peer = rank ^ 1 if world > 1 else rank
    for number in range(_ROUNDS):
        warm = number > 0
        for what in ("memcpy", "gloo one way", "gloo both ways"):
            dist.barrier()
            began = time.monotonic()
            if what == "memcpy":
                other.copy_(mine)
            else:
                _exchange(
                    mine,
                    other,
                    peer,
                    sends=what != "gloo one way" or rank % 2 == 0,
                    receives=what != "gloo one way" or rank % 2 == 1,
                )
            if warm:
                log.write("floor", what=what, seconds=time.monotonic() - began)
    log.write("finished")


def _exchange(
    mine: torch.Tensor, other: torch.Tensor, peer: int, *, sends: bool, receives: bool
) -> None:
    works = [dist.irecv(other, peer)] if receives else []
    works += [dist.isend(mine, peer)] if sends else []
    for work in works:
        assert work is not None
        work.wait()


if __name__ == "__main__":
    main()
