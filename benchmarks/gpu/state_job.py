"""A program whose rank has a state of a given size on its GPU; it computes, and changes all of it.

    castor train benchmarks/gpu/state_job.py --nodes 2 -- --gigabytes 4 --iterations 40 --out FOLDER

Its ranks do not talk to each other but by Castor, for NCCL takes no two ranks on one GPU. With
--blocks it trains that many iterations with checkpoints, then as many without, in turns: the times
of both come from one run. FOLDER/rank-R.json gets them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist

from castor import Checkpointer, TensorState

TENSORS = 32
WARM = 4
"""Iterations that are not measured: profiles are taken in them, and kernels loaded."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, required=True, help="state of one rank")
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=0.4, help="an iteration, about")
    parser.add_argument("--width", type=int, default=8192, help="of the matrices")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--blocks", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


class Job:
    """The state, and what is done in an iteration."""

    def __init__(self, options: argparse.Namespace, rank: int) -> None:
        self._device = torch.device(options.device)
        elements = max(1, int(options.gigabytes * 1e9 / 4 / TENSORS))
        self.state = {
            f"tensor-{number:02d}": torch.full(
                (elements,), float(rank + number), device=self._device
            )
            for number in range(TENSORS)
        }
        torch.manual_seed(rank)
        self._matrix = torch.randn(options.width, options.width, device=self._device) / 100
        self._products = 3
        self.compute()  # the first loads kernels
        self.wait()
        began = time.monotonic()
        self.compute()
        self.wait()
        self._products = max(
            1, round(self._products * options.seconds / max(time.monotonic() - began, 1e-6))
        )

    def compute(self) -> None:
        result = self._matrix
        for _ in range(self._products):
            result = self._matrix @ result

    def update(self, iteration: int) -> None:
        for tensor in self.state.values():
            tensor.mul_(1.0001).add_(iteration)

    def wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    options = arguments()
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    job = Job(options, rank)
    checkpointer = Checkpointer(TensorState(job.state), update_after="capture")
    start = checkpointer.resume()
    times: dict[bool, list[float]] = {True: [], False: []}
    blocked: list[float] = []
    block = options.blocks or options.iterations
    for iteration in range(start, options.iterations):
        saves = (iteration // block) % 2 == 0
        began = time.monotonic()
        job.compute()
        job.wait()
        ready = time.monotonic()
        checkpointer.before_update()  # of the checkpoint before: it may still read the state
        freed = time.monotonic()
        job.update(iteration)
        if saves:
            checkpointer.step()
        # The first of a block still has the last checkpoint of the other beside it.
        if iteration - start >= WARM and iteration % block:
            times[saves].append(time.monotonic() - began)
            if saves:
                blocked.append(freed - ready)
    checkpointer.finish()
    options.out.mkdir(parents=True, exist_ok=True)
    found = {
        "with_s": median(times[True]) if times[True] else None,
        "without_s": median(times[False]) if times[False] else None,
        "blocked_s": median(blocked) if blocked else None,
        "most_blocked_s": max(blocked, default=None),
    }
    (options.out / f"rank-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
