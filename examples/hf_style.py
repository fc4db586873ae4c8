"""A training loop as Hugging Face style scripts have it, exact after any failure under Castor.

    castor train examples/hf_style.py --nodes 2
    castor train examples/hf_style.py --nodes 2 --kill rank:1@4 --kill machine:0@9

Gradient accumulation, clipping, warm-up and cosine, evaluation, a DataLoader with workers that
draw random numbers, DistributedSampler, epochs. docs/your-script.md says why each line is where it
is; what Castor needs beyond an ordinary script is marked with (1) to (5).
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several ranks share the cores of one machine

import deepspeed
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from castor import Checkpointer

TEXT = Path(__file__).parent / "text" / "harbour.txt"
WINDOW = 32


class Windows(Dataset[torch.Tensor]):
    """Windows of a text, as bytes; a worker hides a random byte of each."""

    def __init__(self, count: int) -> None:
        text = torch.frombuffer(bytearray(TEXT.read_bytes()), dtype=torch.uint8)
        self._windows = text[: count * WINDOW].view(count, WINDOW).long()

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> torch.Tensor:
        window = self._windows[index].clone()
        window[torch.randint(0, WINDOW, (1,))] = 0
        return window


class Predictor(torch.nn.Module):
    """A transformer that predicts the next byte."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(256, hidden)
        self.layers = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(hidden, 2, 2 * hidden, batch_first=True)
            for _ in range(2)
        )
        self.head = torch.nn.Linear(hidden, 256)
        mask = torch.nn.Transformer.generate_square_subsequent_mask(WINDOW)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = layer(hidden, src_mask=self.mask, is_causal=True)
        logits = self.head(hidden)[:, :-1].flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())


class Progress:
    """(1) Where the data are, and what evaluation has found: the script's own state."""

    def __init__(self) -> None:
        self.epoch = 0
        self.batches = 0
        self.best = math.inf

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--warm-up", type=int, default=3, help="iterations")
    parser.add_argument("--accumulate", type=int, default=4, help="batches in an iteration")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--evaluate-every", type=int, default=4, help="iterations")
    return parser.parse_args()


def warm_up_and_cosine(
    optimizer: torch.optim.Optimizer, warm_up: int, total: int
) -> torch.optim.lr_scheduler.LambdaLR:
    def factor(iteration: int) -> float:
        if iteration < warm_up:
            return iteration / warm_up
        return 0.5 * (1 + math.cos(math.pi * (iteration - warm_up) / max(1, total - warm_up)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@torch.no_grad()
def evaluate(engine: Any, loader: DataLoader[torch.Tensor]) -> float:
    engine.eval()
    losses = torch.stack([engine(tokens) for tokens in loader])
    engine.train()
    mean = losses.mean()
    torch.distributed.all_reduce(mean)
    return float(mean) / torch.distributed.get_world_size()


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    deepspeed.init_distributed()
    torch.manual_seed(0)  # the same start in every life
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model = Predictor()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        # (2) Whoever steps the schedule holds it: the engine steps this one.
        lr_scheduler=warm_up_and_cosine(optimizer, options.warm_up, options.iterations),
        config={
            "train_micro_batch_size_per_gpu": options.batch,
            "gradient_accumulation_steps": options.accumulate,
            "gradient_clipping": 1.0,
            "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 64},
            "steps_per_print": 1 << 30,
        },
    )
    torch.manual_seed(1 + rank)
    # An epoch has 5 iterations, and 2 batches that go into the first of the next epoch.
    data = Windows(world * options.batch * (5 * options.accumulate + 2))
    sampler = DistributedSampler(data, world, rank, shuffle=True, seed=5)
    held_out = DataLoader(Windows(8), batch_size=4)

    progress = Progress()
    checkpointer = Checkpointer(engine, state={"progress": progress})  # (1)
    done = checkpointer.resume()
    while done < options.iterations:
        sampler.set_epoch(progress.epoch)
        # (3) A seed that follows from the epoch: a loader without one takes torch's next number,
        # and after a recovery within the epoch it would take another.
        seed = torch.Generator().manual_seed(progress.epoch)
        loader = DataLoader(
            data, options.batch, sampler=sampler, num_workers=options.workers, generator=seed
        )
        for index, tokens in enumerate(loader):
            if index < progress.batches:
                continue  # read before the failure; read again, so that workers draw as they did
            loss = engine(tokens)
            engine.backward(loss)
            progress.batches = index + 1
            engine.step()
            ended = engine.global_steps > done
            done = engine.global_steps
            if ended and done % options.evaluate_every == 0:
                # (4) Before checkpointer.step: what it draws and finds is in the checkpoint.
                with checkpointer.busy("evaluation"):
                    progress.best = min(progress.best, evaluate(engine, held_out))
                if rank == 0:
                    print(f"iteration {done}: best loss {progress.best:.4f}", flush=True)
            checkpointer.step(loss=loss)  # (5) after each engine.step; it knows where one ends
            if done == options.iterations:
                break
        else:
            progress.epoch, progress.batches = progress.epoch + 1, 0
    checkpointer.finish()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
