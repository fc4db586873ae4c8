"""What a replaceable group costs each collective, beside the plain gloo group inside it.

    python benchmarks/collectives/measure.py [--rounds 40] [--calls 200]

Both do the same calls in turns, round after round, with one rank and with two, at two sizes: the
difference has to be the same at both. Its share of an iteration is that of examples/gpt2_tiny.py as
it stands (the model computed by one rank alone, which asks for as many collectives as one of
several; with others an iteration takes longer, so the share is less).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing
from torch._C._distributed_c10d import (
    AllgatherOptions,
    AllreduceOptions,
    PrefixStore,
    ReduceScatterOptions,
    TCPStore,
)

from castor_runtime.trainer.swap.gloo_inside import GlooInside
from castor_runtime.trainer.swap.lone_rank import LoneRank
from castor_runtime.trainer.swap.replaceable_group import ReplaceableGroup

SIZES_BYTES = (4, 1 << 20)
LONG = timedelta(seconds=300)


def all_reduce(group: Any, tensor: torch.Tensor, _all: torch.Tensor) -> None:
    group.allreduce([tensor], AllreduceOptions()).wait()


def all_gather(group: Any, tensor: torch.Tensor, every: torch.Tensor) -> None:
    group.all_gather_single(every, tensor, AllgatherOptions()).wait()


def reduce_scatter(group: Any, tensor: torch.Tensor, every: torch.Tensor) -> None:
    group.reduce_scatter_single(tensor, every, ReduceScatterOptions()).wait()


def seconds(collective: Callable[..., None], group: Any, size_bytes: int, calls: int) -> float:
    """Return what one call takes, with its wait."""
    tensor = torch.zeros(size_bytes // 4)
    every = torch.zeros(size_bytes // 4 * group.size())
    began = time.perf_counter()
    for _ in range(calls):
        collective(group, tensor, every)
    return (time.perf_counter() - began) / calls


def measure(rank: int, ranks: int, port: int, rounds: int, calls: int) -> None:
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, is_master=False, timeout=LONG)
    bare = GlooInside(PrefixStore(f"bare/{ranks}", store), rank, ranks, LONG)
    bare.connect()
    wrapped = ReplaceableGroup(f"wrapped {ranks}", range(ranks), rank, LONG, GlooInside)
    wrapped.connect(store, 1, rank)
    for collective in (all_reduce, all_gather, reduce_scatter):
        for size_bytes in SIZES_BYTES:
            fewer = calls if size_bytes < 1024 else max(1, calls // 10)
            pairs = [
                tuple(seconds(collective, one, size_bytes, fewer) for one in groups)
                for groups in rounds * [(bare.operations, wrapped)]
            ]
            if rank == 0:
                plain, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
                more = statistics.median(second - first for first, second in pairs)
                print(
                    f"{ranks} ranks  {collective.__name__:15} {size_bytes:8} B  plain "
                    f"{plain * 1e6:8.1f} us  replaceable {ours * 1e6:8.1f}  more {more * 1e6:6.1f}",
                    flush=True,
                )
    store.add(f"done/{ranks}", 1)
    while store.add(f"done/{ranks}", 0) < ranks:
        time.sleep(0.01)


def more_of_a_call(calls: int, rounds: int) -> float:
    """Return what the wrapper alone takes, in seconds: nothing is inside that takes any time."""

    class Instant(LoneRank):
        def allreduce(self, *_: Any) -> Any:  # type: ignore[override]
            return work

    inside = Instant(0, 1)
    work = LoneRank(0, 1).barrier()
    group = ReplaceableGroup("instant", (0,), 0, LONG, GlooInside)
    group._inside = inside
    pairs = [
        seconds(all_reduce, group, 4, calls) - seconds(all_reduce, Same(inside), 4, calls)
        for _ in range(rounds)
    ]
    return statistics.median(pairs)


class Same:
    """What stands inside, with a group's size."""

    def __init__(self, inside: Any) -> None:
        self.allreduce = inside.allreduce

    def size(self) -> int:
        return 1


def example_iteration() -> tuple[float, float]:
    """Return how many collectives the example asks for in an iteration, and what that takes."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="4", DS_ACCELERATOR="cpu")
    import deepspeed  # noqa: PLC0415 - costs seconds
    import gpt2_tiny as example  # noqa: PLC0415

    from castor_runtime.agent.preload import preload  # noqa: PLC0415
    from castor_runtime.trainer.swap.groups import Groups  # noqa: PLC0415

    preload()
    sys.argv = ["gpt2_tiny.py"]
    options = example.arguments()
    groups = Groups()
    groups.install()
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    shape = example.model_shape(options)
    model = example.build_language_model(shape, dropout=options.dropout, paced_layer_s=None)
    engine = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=3e-3),
        config=example.deepspeed_configuration(options),
    )[0]
    sampler = example.TextSampler(
        example.read_text(options.text), sequence=options.sequence, batch=options.batch
    )
    took: list[tuple[float, int]] = []
    for _ in range(12):
        before, began = begun(groups), time.perf_counter()
        loss = engine(sampler.next_batch())
        engine.backward(loss)
        engine.step()
        took.append((time.perf_counter() - began, begun(groups) - before))
    iteration_s, calls = (statistics.median(column) for column in zip(*took[4:], strict=True))
    return calls, iteration_s


def begun(groups: Any) -> int:
    return sum(group._get_sequence_number_for_group() for group in groups._made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--calls", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", 0, is_master=True, timeout=LONG)
    for ranks in (1, 2):
        multiprocessing.spawn(
            measure, (ranks, store.port, options.rounds, options.calls), nprocs=ranks
        )
    alone = more_of_a_call(options.calls, options.rounds)
    calls, iteration_s = example_iteration()
    print(
        f"the wrapper alone: {alone * 1e6:.1f} us a call; the example: {calls:.0f} calls in "
        f"{iteration_s * 1e3:.1f} ms: {100 * calls * alone / iteration_s:.2f} % of its iteration"
    )


if __name__ == "__main__":
    main()
