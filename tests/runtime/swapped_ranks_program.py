"""A DeepSpeed job in which ranks die and spares take their places.

    python swapped_ranks_program.py PORT FOLDER

Three ranks train twice from the same start: undisturbed, and then with the deaths of `DEATHS`, in
which a rank kills itself. As many spares build their engines as rank 0, and wait. All are forked
from this process, which has imported what they need, and tells who has died to the store at PORT.
Copies of each rank's state lie in FOLDER, as replicas would. Each rank that gets to the end writes
there what it came to.
"""

from __future__ import annotations

import contextlib
import hashlib
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

import deepspeed
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from castor_runtime.agent.preload import preload
from castor_runtime.state.meta import decode, encode
from castor_runtime.state.sections import WholeSections, copy_section, part_bytes
from castor_runtime.trainer.agreements import agree_on_trace, all_can
from castor_runtime.trainer.deepspeed_state import DeepSpeedState
from castor_runtime.trainer.swap.errors import LostRankError
from castor_runtime.trainer.swap.groups import Connection, Groups
from castor_runtime.trainer.swap.interrupted_iteration import InterruptedIteration
from castor_runtime.trainer.swap.place import take_place

PORT, FOLDER = int(sys.argv[1]), Path(sys.argv[2])
SIZE, WIDTH, ITERATIONS, BATCHES = 3, 13, 9, 2
DEATHS = {(3, 1, 1): "forward", (5, 2, 2): "backward", (7, 1, 3): "step"}
"""Where a rank dies, by the iteration that is under way, its rank and its generation."""

Copy = tuple[torch.Tensor, bytes]


def build() -> Any:
    torch.manual_seed(0)
    blocks = [torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.GELU()) for _ in range(4)]
    configuration = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": BATCHES,
        "gradient_clipping": 1.0,
        "zero_optimization": {
            "stage": 3,
            "stage3_param_persistence_threshold": WIDTH,
            "reduce_bucket_size": 2 * WIDTH * WIDTH,
        },
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
        "steps_per_print": 1 << 30,
    }
    return deepspeed.initialize(model=torch.nn.Sequential(*blocks), config=configuration)[0]


class Trainer:
    """An engine with its groups, and the copies of its state."""

    def __init__(self, spare: int | None) -> None:
        self.is_spare = spare is not None
        self.store = TCPStore("127.0.0.1", PORT, is_master=False, timeout=timedelta(seconds=200))
        self.groups = Groups(None if self.is_spare else lambda: Connection(self.store, 1))
        self.groups.install()
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
        self.engine = build()
        self.state = DeepSpeedState(self.engine)
        self.interrupted = InterruptedIteration(self.engine)
        self.generation = 1
        self.disturbed = False
        self.seconds: list[float] = []
        self.traced: list[bool] = []
        blocks = list(self.engine.module)
        blocks[2].register_forward_pre_hook(lambda *_: self.pass_by("forward"))
        blocks[1].register_full_backward_hook(lambda *_: self.pass_by("backward"))
        zero = self.engine.optimizer
        gather = zero._post_step

        def post_step(*arguments: Any) -> None:
            self.pass_by("step")
            gather(*arguments)

        zero._post_step = post_step

    def pass_by(self, where: str) -> None:
        """Die here, where that is planned."""
        at = (int(self.engine.global_steps), dist.get_rank(), self.generation)
        in_second = self.engine.micro_steps % BATCHES == 1 or where == "backward"
        if self.disturbed and DEATHS.get(at) == where and in_second:
            os.kill(os.getpid(), signal.SIGKILL)

    def is_traced(self) -> bool:
        """Whether parameters are gathered ahead."""
        zero = self.engine.optimizer
        return bool(zero.parameter_offload.get_param_coordinator().is_complete_trace())

    def copy(self) -> Copy:
        part = torch.zeros(part_bytes(self.state.sections), dtype=torch.uint8)
        for section, live in zip(self.state.sections, self.state.live(), strict=True):
            if live is not None:
                copy_section(section, part, live)
        return part, encode(self.state.meta())

    def keep(self) -> None:
        file = FOLDER / f"{dist.get_rank()}-{self.state.iteration()}"
        torch.save(self.copy(), file.with_suffix(".new"))
        file.with_suffix(".new").rename(file)

    def load(self, iteration: int) -> None:
        part, meta = torch.load(FOLDER / f"{dist.get_rank()}-{iteration}", weights_only=True)
        self.state.restore(WholeSections.of(part, self.state.sections), decode(meta))

    def iterate(self) -> None:
        drawn = torch.Generator().manual_seed(100 * self.state.iteration() + dist.get_rank())
        for _ in range(BATCHES):
            loss = self.engine(torch.randn(4, WIDTH, generator=drawn)).square().mean()
            self.engine.backward(loss)
            self.engine.step()

    def digest(self) -> str:
        part, meta = self.copy()
        computed = [one.ds_tensor.numpy().tobytes() for one in self.engine.module.parameters()]
        return hashlib.sha256(b"".join([part.numpy().tobytes(), meta, *computed])).hexdigest()

    def watch(self) -> None:
        """End the generation when the word comes, while training waits for a rank."""

        def wait(generation: int) -> None:
            store = self.store.clone()
            store.wait([f"end/{generation}"])
            self.groups.end_all(generation)

        threading.Thread(target=wait, args=(self.generation,), daemon=True).start()

    def swap(self, generation: int, rank: int) -> None:
        """Go on in the next generation, from the newest iteration that every rank has."""
        began = time.monotonic()
        self.groups.let_go_all()
        self.interrupted.throw_away()
        self.groups.connect_all(self.store, generation, rank)
        take_place(self.engine)
        self.generation = generation
        self.watch()
        newest = max(int(file.name.split("-")[1]) for file in FOLDER.glob(f"{rank}-*[0-9]"))
        common = torch.tensor([newest])
        dist.all_reduce(common, dist.ReduceOp.MIN)
        self.load(int(common))
        trace = agree_on_trace(self.interrupted.trace(), dist.group.WORLD)
        assert all_can(self.interrupted.retrace(trace), dist.group.WORLD)
        self.traced.append(self.is_traced())
        self.seconds.append(time.monotonic() - began)

    def train(self) -> None:
        while self.state.iteration() < ITERATIONS:
            try:
                self.iterate()
                self.keep()
            except LostRankError:
                self.store.wait([f"end/{self.generation}"])
                self.swap(self.generation + 1, dist.get_rank())


def live(rank: int, spare: int | None) -> None:
    """A rank's life, or that of a spare."""
    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(SIZE))
    torch.set_num_threads(1)
    trainer = Trainer(spare)
    if spare is not None:
        trainer.store.set(f"built/{spare}", b"")
        trainer.store.wait([f"place/{spare}"])
        place = json.loads(trainer.store.get(f"place/{spare}"))
        trainer.swap(place["generation"], place["rank"])
    else:
        trainer.watch()
        trainer.keep()
        while trainer.state.iteration() < ITERATIONS:
            trainer.iterate()
        trainer.store.set(f"undisturbed/{rank}", trainer.digest())
        trainer.store.wait([f"built/{number}" for number in range(len(DEATHS))])
        trainer.interrupted.throw_away()
        trainer.load(0)
    trainer.disturbed = True
    trainer.train()
    came_to = {
        "pid": os.getpid(),
        "digest": trainer.digest(),
        "swaps": trainer.seconds,
        "traced": [*trainer.traced, trainer.is_traced()],
        "ranks": [
            trainer.engine.global_rank,
            *(one.ds_zero_partition_rank for one in trainer.engine.module.parameters()),
        ],
        "padding": trainer.engine.optimizer.groups_padding,
    }
    (FOLDER / f"came-to-{dist.get_rank()}").write_text(json.dumps(came_to))


def fork(rank: int, spare: int | None = None) -> int:
    if pid := os.fork():
        return pid
    try:
        live(rank, spare)
        os._exit(0)
    finally:  # whatever is raised, this is no second parent
        traceback.print_exc()
        os._exit(1)


def main() -> None:
    preload()
    places = {rank: fork(rank) for rank in range(SIZE)}
    spares = [fork(0, number) for number in range(len(DEATHS))]
    (FOLDER / "pids").write_text(json.dumps([list(places.values()), spares]))
    store = TCPStore("127.0.0.1", PORT, is_master=False, timeout=timedelta(seconds=200))
    try:
        for number, (_, dying, generation) in enumerate(DEATHS):
            _, status = os.waitpid(places[dying], 0)
            assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
            places[dying] = spares[number]
            place = {"rank": dying, "generation": generation + 1}
            store.set(f"place/{number}", json.dumps(place))
            store.set(f"end/{generation}", b"")
        for rank, pid in places.items():
            assert os.waitpid(pid, 0)[1] == 0, f"rank {rank}"
    finally:
        for pid in (*places.values(), *spares):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


main()
