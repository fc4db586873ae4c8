"""The DeepSpeed program that every system here trains: GPT-2, ZeRO-3, AdamW, paced or not.

    castor train benchmarks/recovery/job.py -- --system castor --records DIR
    torchrun --nproc-per-node 4 benchmarks/recovery/job.py --system deepspeed --every 9 ...

--system castor checkpoints by `Checkpointer`, deepspeed by `save_checkpoint` to slow storage in the
background of training, none not at all.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several ranks share the cores of one machine
sys.path.insert(0, str(Path(__file__).resolve().parent))

import deepspeed
import deepspeed.comm.torch
import torch
import torch.distributed as dist
from rank_log import RankLog
from throttled_storage import ThrottledStorage, iteration_of, tag_of

from castor_configs.model import load_model
from castor_lab.programs.language_model import build_language_model
from castor_lab.programs.text import TextSampler, read_text
from castor_lab.programs.went_back import WentBack

LAYER_S = 0.2
"""How long what computes goes on without a collective."""

TEXT = Path(__file__).resolve().parents[2] / "examples" / "text" / "harbour.txt"

# It would be compiled by a C++ compiler at the first collective; Castor switches it off as well.
vars(sys.modules["deepspeed.comm.torch"])["build_shm_op"] = lambda: None


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--system", choices=["castor", "deepspeed", "none"], required=True)
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--sequence", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=1_000_000)
    parser.add_argument("--pace-s", type=float, default=0.0, help="sleep in each forward")
    parser.add_argument("--block", type=int, default=0, help="checkpoint every other block of so")
    parser.add_argument("--in-place", action="store_true", help="of --system castor")
    parser.add_argument("--every", type=int, default=1, help="of --system deepspeed")
    parser.add_argument("--storage", type=Path)
    parser.add_argument("--staging", type=Path)
    parser.add_argument("--storage-bytes-per-s", type=float, default=1e12)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def compute(seconds: float) -> None:
    """Sleep as long as a larger model would compute.

    What computes cannot leave an iteration. So a long time is cut into layers', with a collective
    between two of them as ZeRO-3 has it.
    """
    layers = max(1, round(seconds / LAYER_S))
    for layer in range(layers):
        if layer:
            dist.all_reduce(torch.zeros(1))
        time.sleep(seconds / layers)


def build_engine(options: argparse.Namespace) -> Any:
    torch.manual_seed(options.seed)
    sizes = {
        "layers": options.layers,
        "hidden": options.hidden,
        "intermediate": 4 * options.hidden,
        "heads": 4,
        "vocab": 320,
        "sequence_length": options.sequence,
        "micro_batch": options.batch,
    }
    shape = load_model("gpt2-tiny", overrides=[f"{key}={value}" for key, value in sizes.items()])
    model = build_language_model(shape, dropout=0.1)
    if options.pace_s:
        model.register_forward_pre_hook(lambda *_: compute(options.pace_s))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config={
            "train_micro_batch_size_per_gpu": options.batch,
            "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 256},
            "steps_per_print": 1 << 30,
        },
    )
    return engine


class NoCheckpoints:
    """The reference: trains and forgets."""

    def load(self) -> int:
        return 0

    def step(self, iteration: int, loss: torch.Tensor) -> bool:
        del iteration, loss
        return False

    def finish(self) -> None:
        pass


class CastorCheckpoints:
    """Every iteration into memory; with `block`, in every other block of so many iterations."""

    def __init__(self, engine: Any, sampler: TextSampler, block: int) -> None:
        from castor import Checkpointer  # noqa: PLC0415 - the other systems do without

        self.went_back = WentBack()
        self.checkpointer = Checkpointer(
            engine, state={"sampler": sampler, "went_back": self.went_back}
        )
        self._block = block

    def load(self) -> int:
        return self.checkpointer.resume()

    def step(self, iteration: int, loss: torch.Tensor) -> bool:
        wanted = not self._block or (iteration - 1) // self._block % 2 == 1
        if wanted:
            self.checkpointer.step(loss=loss)
        return wanted

    def finish(self) -> None:
        self.checkpointer.finish()


class StorageCheckpoints:
    """DeepSpeed's own, as the paper's baselines: saving blocks, the transfer goes on beside."""

    def __init__(
        self, engine: Any, sampler: TextSampler, options: argparse.Namespace, log: RankLog
    ) -> None:
        self._engine = engine
        self._sampler = sampler
        self._every = options.every
        self._staging = options.staging
        self._storage = ThrottledStorage(options.storage, options.storage_bytes_per_s)
        self._log = log
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._transfer: threading.Thread | None = None

    def load(self) -> int:
        tag = self._storage.newest_whole(self._world)
        if tag is None:
            return 0
        folder = self._staging / tag
        self._storage.read(tag, self._mine(self._storage.folder / tag), folder)
        dist.barrier()
        _, client = self._engine.load_checkpoint(str(self._staging), tag=tag)
        self._sampler.load_state_dict(client["sampler"])
        torch.set_rng_state(client["random"])
        return iteration_of(tag)

    def step(self, iteration: int, loss: torch.Tensor) -> bool:
        del loss
        if (iteration - 1) % self._every:
            return False
        if self._transfer is not None:
            self._transfer.join()  # Eq. 2: one checkpoint at a time
        began = time.monotonic()
        client = {"sampler": self._sampler.state_dict(), "random": torch.get_rng_state()}
        tag = tag_of(iteration)
        self._engine.save_checkpoint(str(self._staging), tag=tag, client_state=client)
        self._log.write("save_blocked", iteration=iteration, seconds=time.monotonic() - began)
        self._transfer = threading.Thread(target=self._send, args=(tag, began), daemon=True)
        self._transfer.start()
        return True

    def finish(self) -> None:
        if self._transfer is not None:
            self._transfer.join()

    def _send(self, tag: str, began: float) -> None:
        folder = self._staging / tag
        files = [folder / name for name in self._mine(folder)]
        sent_bytes = self._storage.write(files, tag)
        self._storage.mark_whole(tag, self._rank)
        self._log.write(
            "saved",
            iteration=iteration_of(tag),
            seconds=time.monotonic() - began,
            bytes=sent_bytes,
        )
        for file in files:
            file.unlink(missing_ok=True)
        self._remove_older()

    def _mine(self, folder: Path) -> list[str]:
        """Name this rank's files; the folder holds those of all ranks."""
        return [path.name for path in folder.glob(f"*zero_pp_rank_{self._rank}_*")]

    def _remove_older(self) -> None:
        newest = self._storage.newest_whole(self._world)
        if self._rank or newest is None:
            return
        for path in self._storage.folder.glob("iteration-*"):
            if iteration_of(path.name) < iteration_of(newest):
                shutil.rmtree(path, ignore_errors=True)


def process_started_ns() -> int:
    """Return when the kernel made this process, CLOCK_REALTIME, to 10 ms."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time_ns() - int(age_s * 1e9)


def train_in_place(
    castor: CastorCheckpoints, log: RankLog, train: Callable[[int], None], iterations: int
) -> None:
    """Train as a script does that goes on without a restart, and note when it does."""
    checkpointer = castor.checkpointer

    def note() -> None:
        if castor.went_back.ask():
            log.rolled_back(checkpointer.done)

    while checkpointer.done < iterations:
        with checkpointer.iteration():
            note()  # told between two iterations
            train(checkpointer.done + 1)
        note()


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    deepspeed.init_distributed()
    rank, world = dist.get_rank(), dist.get_world_size()
    log = RankLog(options.records, rank)
    log.write("started", time_ns=process_started_ns())
    engine = build_engine(options)
    torch.manual_seed(options.seed + 1 + rank)
    sampler = TextSampler(
        read_text(TEXT),
        sequence=options.sequence,
        batch=options.batch,
        rank=rank,
        world=world,
        seed=options.seed,
    )
    log.write("built")
    checkpoints: NoCheckpoints | CastorCheckpoints | StorageCheckpoints = NoCheckpoints()
    if options.system == "castor":
        checkpoints = CastorCheckpoints(engine, sampler, options.block)
    elif options.system == "deepspeed":
        checkpoints = StorageCheckpoints(engine, sampler, options, log)
    began = time.monotonic()
    start = checkpoints.load()
    log.write("loaded", iteration=start, seconds=time.monotonic() - began)
    if isinstance(checkpoints, CastorCheckpoints):
        checkpoints.went_back.ask()

    def train(iteration: int) -> None:
        began = time.monotonic()
        loss = engine(sampler.next_batch())
        engine.backward(loss)
        engine.step()
        checkpointed = checkpoints.step(iteration, loss)
        log.write(
            "iteration_ended",
            iteration=iteration,
            seconds=time.monotonic() - began,
            loss=float(loss.detach()),
            checkpointed=checkpointed,
        )

    if options.in_place:
        assert isinstance(checkpoints, CastorCheckpoints), "--in-place is Castor's"
        train_in_place(checkpoints, log, train, options.iterations)
    else:
        for iteration in range(start + 1, options.iterations + 1):
            train(iteration)
    checkpoints.finish()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
