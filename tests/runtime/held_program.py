"""Small training scripts, each with state in a place of its own; run by test_held_state.py.

    python held_program.py MODE OUT ITERATIONS [STOP_AT]

Writes what training came to into OUT. With STOP_AT it stands still within iteration STOP_AT + 1,
after a micro-batch, for the test to kill it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import deepspeed
import torch

from castor import Checkpointer
from castor_runtime.trainer.deepspeed_state import DeepSpeedState

ACCUMULATE = 2


class Cursor:
    """Which micro-batch is next."""

    def __init__(self) -> None:
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.1), torch.nn.Linear(8, 8))


def configuration(**extra: Any) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": ACCUMULATE,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 10},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 30,
        **extra,
    }


def build(model: torch.nn.Module, optimizer: Any = None, **extra: Any) -> Any:
    return deepspeed.initialize(model=model, optimizer=optimizer, config=configuration(**extra))[0]


def batch(number: int) -> torch.Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(number))


def micro_batch(engine: Any, cursor: Cursor) -> torch.Tensor:
    loss: torch.Tensor = engine(batch(cursor.at)).pow(2).mean()
    cursor.at += 1
    engine.backward(loss)
    engine.step()
    return loss


def pretrain(folder: Path) -> None:
    """Train three iterations without Castor and save them as DeepSpeed does."""
    model = network()
    engine = build(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    cursor = Cursor()
    while engine.global_steps < 3:
        micro_batch(engine, cursor)
    engine.save_checkpoint(str(folder))


def train(mode: str, out: Path, iterations: int, stop_at: int | None) -> dict[str, Any]:
    model = network()
    cursor = Cursor()
    if mode == "without_optimizer":
        Checkpointer(build(model))
    engine = build(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    if mode == "pretrained":
        engine.load_checkpoint(str(out.parent / "pretrained"))
        cursor.at = 3 * ACCUMULATE
    torch.manual_seed(1)
    checkpointer = Checkpointer(engine, state={"cursor": cursor})
    start = checkpointer.resume()
    if mode == "loaded_late":
        micro_batch(engine, cursor), checkpointer.step()
        micro_batch(engine, cursor), checkpointer.step()
        engine.global_steps = 0  # as load_checkpoint sets it
    counted = []
    while engine.global_steps < iterations:
        loss = micro_batch(engine, cursor)
        checkpointer.step(loss=loss)
        counted.append([cursor.at, engine.global_steps])
        if stop_at is not None and cursor.at == stop_at * ACCUMULATE + 1:
            time.sleep(60)
    checkpointer.finish()
    state = DeepSpeedState(engine)
    raw = [
        t.detach().contiguous().view(torch.uint8).numpy().tobytes()
        for t in state.live()
        if t is not None
    ]
    return {
        "start": start,
        "cursor": cursor.at,
        "sha256": hashlib.sha256(b"".join(raw)).hexdigest(),
        "torch": int(torch.randint(1 << 30, ())),
    }


def main() -> None:
    mode, out, iterations = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    stop_at = int(sys.argv[4]) if len(sys.argv) > 4 else None
    deepspeed.init_distributed("gloo")
    torch.manual_seed(0)
    if mode == "pretrain":
        pretrain(out.parent / "pretrained")
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = train(mode, out, iterations, stop_at)
    said = [
        str(warning.message)
        for warning in caught
        if issubclass(warning.category, UserWarning | RuntimeWarning)
    ]
    out.write_text(json.dumps({**result, "warnings": said}))


if __name__ == "__main__":
    main()
