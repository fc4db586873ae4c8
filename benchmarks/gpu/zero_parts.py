"""Whether what is captured beside ZeRO-3's next iteration is the state as the update left it.

Beside each capture a clone is queued on training's own stream, which can be nothing else.
"""

from __future__ import annotations

import contextlib
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

import deepspeed
import torch
from gpu import MIB, Gpu, Line, verdict
from ways import capturing, pinned_memory

from castor_runtime.state.sections import part_bytes
from castor_runtime.trainer.deepspeed_state import DeepSpeedState

_ADAM = {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}
_OWN_ADAM = {"type": "AdamW", "params": {"lr": 1e-3}}
_BF16 = {"bf16": {"enabled": True}}
VARIANTS: dict[str, dict[str, Any]] = {
    "torch's AdamW": {**_BF16, "optimizer": _ADAM},
    "overlap_comm": {**_BF16, "optimizer": _ADAM, "zero": {"overlap_comm": True}},
    "side stream": {**_BF16, "optimizer": _ADAM, "side_stream": True},
    "fp16": {"fp16": {"enabled": True, "initial_scale_power": 20}, "optimizer": _ADAM},
    "FusedAdam": {**_BF16, "optimizer": _OWN_ADAM},
    "CPUAdam": {
        **_BF16,
        "optimizer": _OWN_ADAM,
        "zero": {"offload_optimizer": {"device": "cpu"}},
    },
}
_ITERATIONS = 6


def zero(gpu: Gpu, _: Namespace, variant: str) -> list[Line]:
    """Capture after each update while the next iteration's passes run; compare with clones."""
    given = dict(VARIANTS[variant])
    if gpu.rehearses and given.pop("fp16", None):
        given |= _BF16  # the CPU knows no fp16
    in_side_stream = given.pop("side_stream", False)
    width, batch = (64, 4) if gpu.rehearses else (2048, 64)
    engine = _engine(given, width, batch)
    state = DeepSpeedState(engine)
    dtype = next(engine.module.parameters()).dtype
    side = gpu.cuda.Stream(gpu.device)
    step, equal, compared = _loop(gpu, engine, width, batch, dtype), True, 0
    total = part_bytes(state.sections)
    stream = gpu.cuda.stream(side) if in_side_stream else contextlib.nullcontext()
    with capturing(gpu, 4 * MIB) as device, pinned_memory(device, total) as own, stream:
        step(update=True)  # makes the optimizer's state
        for _ in range(_ITERATIONS):
            step(update=True)
            with device.moment():
                live = state.live()
                clones = [None if one is None else one.detach().clone() for one in live]
            own.fill_(7)
            device.capture(state.sections, live, own, lambda: None)
            step(update=False)  # forward and backward of the next one
            device.wait_captured()
            device.note_update()
            engine.step()
            for section, clone in zip(state.sections, clones, strict=True):
                if clone is not None:
                    same = torch.equal(section.view(own), clone.cpu())
                    equal, compared = equal and same, compared + 1
    return [
        Line(f"{variant}: tensors compared", compared, ""),
        verdict(f"{variant}: captures beside training", equal=equal),
    ]


def _engine(given: dict[str, Any], width: int, batch: int) -> Any:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        *(layer for _ in range(4) for layer in (torch.nn.Linear(width, width), torch.nn.GELU()))
    )
    stage3 = {"stage": 3, "stage3_param_persistence_threshold": 256, **given.pop("zero", {})}
    config = {
        "train_micro_batch_size_per_gpu": batch,
        "zero_optimization": stage3,
        "steps_per_print": 1 << 30,
        **given,
    }
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=model.parameters(), config=config
    )
    return engine


def _loop(gpu: Gpu, engine: Any, width: int, batch: int, dtype: torch.dtype) -> Callable[..., None]:
    def batches() -> Iterator[torch.Tensor]:
        made = torch.Generator().manual_seed(1)
        while True:
            yield torch.randn(batch, width, generator=made).to(gpu.device, dtype)

    following = batches()

    def step(*, update: bool) -> None:
        loss = engine(next(following)).float().pow(2).mean()
        engine.backward(loss)
        if update:
            engine.step()

    return step
