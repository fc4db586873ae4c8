"""GPT-2 with DeepSpeed, whose ranks misbehave when they are told to: see measure.py.

    castor train benchmarks/diagnosis/job.py -- --told FOLDER

A rank that finds FOLDER/rank-R in an iteration takes it away and does what it says: "error",
"leave" or "stall", before its forward or, with " late" behind it, between backward and step; "odd":
its loss is no number. "slow" stays: the rank is late in each iteration until the file is gone.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several ranks share the cores of one machine

import deepspeed
import torch
import torch.distributed as dist

from castor import Checkpointer
from castor_configs.model import load_model
from castor_lab.programs.language_model import build_language_model
from castor_lab.programs.text import TextSampler, read_text

TEXT = Path(__file__).resolve().parents[2] / "examples" / "text" / "harbour.txt"
SIZES = ("layers=1", "hidden=32", "heads=4", "sequence_length=32", "micro_batch=2", "vocab=320")


LATE_S = 0.25


def misbehave(told: Path, moment: str) -> str:
    """Do what this rank is told for this moment; return it."""
    try:
        what, _, when = told.read_text().partition(" ")
    except FileNotFoundError:
        return ""
    if when != moment:
        return ""
    if what == "slow":
        time.sleep(LATE_S)
        return what
    told.unlink()
    match what:
        case "odd":
            return what
        case "error":
            raise ArithmeticError("the loss is not finite")
        case "leave":
            sys.exit(0)
        case "stall":
            while True:
                time.sleep(1)
    raise ValueError(f"{told.name}: told {what!r}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--told", type=Path, required=True)
    parser.add_argument("--restart", action="store_true", help="do not go on in place")
    options = parser.parse_args()
    torch.set_num_threads(1)
    deepspeed.init_distributed()
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    shape = load_model("gpt2-tiny", overrides=[*SIZES, "intermediate=128"])
    model = build_language_model(shape, dropout=0.0)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        config={"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 3}},
    )
    sampler = TextSampler(read_text(TEXT), sequence=32, batch=2, rank=rank, world=world, seed=0)
    checkpointer = Checkpointer(engine, state={"sampler": sampler})
    checkpointer.resume()
    told = options.told / f"rank-{rank}"
    while True:
        with nullcontext() if options.restart else checkpointer.iteration():
            what = misbehave(told, "")
            loss = engine(sampler.next_batch())
            engine.backward(loss)
            misbehave(told, "late")
            engine.step()
            checkpointer.step(loss=float("nan") if what == "odd" else loss)


if __name__ == "__main__":
    main()
