"""The program that the GPU check trains: GPT-2 under ZeRO-3, on whatever the accelerator is.

castor train benchmarks/gpu/job.py --nodes 1 --replicas 1 -- --iterations 20
"""

from __future__ import annotations

import argparse
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist

from castor import Checkpointer
from castor_configs.model import load_model
from castor_lab.programs.language_model import build_language_model
from castor_lab.programs.text import TextSampler, read_text

TEXT = Path(__file__).resolve().parents[2] / "examples" / "text" / "harbour.txt"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    deepspeed.init_distributed()
    # The same sums in the same order, run after run: else no restore could be called bit-exact.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(options.seed)
    sizes = {
        "layers": options.layers,
        "hidden": options.hidden,
        "intermediate": 4 * options.hidden,
        "heads": 8,
        "vocab": 320,
        "sequence_length": options.sequence,
        "micro_batch": options.batch,
    }
    shape = load_model("gpt2-tiny", overrides=[f"{key}={value}" for key, value in sizes.items()])
    model = build_language_model(shape, dropout=0.1)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        config={
            "train_micro_batch_size_per_gpu": options.batch,
            "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 256},
            "bf16": {"enabled": True},
            "steps_per_print": 1 << 30,
        },
    )
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(options.seed + 1 + rank)
    sampler = TextSampler(
        read_text(TEXT),
        sequence=options.sequence,
        batch=options.batch,
        rank=rank,
        world=world,
        seed=options.seed,
    )
    checkpointer = Checkpointer(engine, state={"sampler": sampler})
    start = checkpointer.resume()
    for _ in range(start, options.iterations):
        loss = engine(sampler.next_batch().to(engine.device))
        engine.backward(loss)
        engine.step()
        checkpointer.step(loss=loss)
    checkpointer.finish()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
