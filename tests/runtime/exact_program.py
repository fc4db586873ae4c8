"""Trains under one DeepSpeed configuration after the other, restores, and compares bit for bit.

    python exact_program.py OUT

Each case: four iterations, the state is taken as a checkpoint takes it, three more; then a new
engine, built alike from other weights, gets that state and does the same three. Together the cases
use every option of `exact_configurations.TRIED`. Writes into OUT what each came to ("exact", what
was different, or the error), by which sentence each of `REFUSED` is refused, and each option that
was used, with its values.
"""

from __future__ import annotations

import gc
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator

from castor_runtime.state.meta import decode, encode
from castor_runtime.state.sections import WholeSections, copy_section, part_bytes
from castor_runtime.trainer.deepspeed_state import DeepSpeedState

BEFORE, AFTER = 4, 3
ADAMW = {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}}


@dataclass(frozen=True)
class Case:
    """One configuration.

    Attributes:
        options: of DeepSpeed, beside those that every case has.
        zero: of its section `zero_optimization`.
        optimizer: makes one for the model; None: the configuration names it.
        groups: of parameters for the optimizer that the configuration names; None: one of all.
        scale: of the loss in two iterations.
    """

    options: dict[str, Any] = field(default_factory=dict)
    zero: dict[str, Any] = field(default_factory=dict)
    optimizer: Callable[[torch.nn.Module], torch.optim.Optimizer] | None = None
    groups: Callable[[torch.nn.Module], list[dict[str, Any]]] | None = None
    scale: int = 1

    def __or__(self, other: Case) -> Case:
        """Return a case with the options of both."""
        return Case(self.options | other.options)

    def configuration(self) -> dict[str, Any]:
        base: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 4,
            "zero_optimization": {
                "stage": 3,
                "stage3_param_persistence_threshold": 40,
                **self.zero,
            },
            "steps_per_print": 1 << 30,
        }
        named = {} if self.optimizer else {"optimizer": ADAMW}
        return base | named | self.options


def named(kind: str, **params: Any) -> Case:
    """By its name: DeepSpeed's own, or one of torch.optim."""
    optimizer = {"type": kind, "params": {"lr": 1e-3, **params}}
    return Case({"optimizer": optimizer, "zero_allow_untested_optimizer": True})


def scheduled(kind: str, **params: Any) -> Case:
    return Case({"scheduler": {"type": kind, "params": params}})


def trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def without_decay_of_biases(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Two groups, as most trainers of transformers make them."""
    parameters = trained(model)
    return [
        {"params": [one for one in parameters if one.ndim > 1], "weight_decay": 0.1},
        {"params": [one for one in parameters if one.ndim < 2], "weight_decay": 0.0},
    ]


def with_frozen_group(model: torch.nn.Module) -> torch.optim.Optimizer:
    """The first of three groups is frozen as a whole, as a backbone under adapters is."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    first, *others = trained(model)
    return torch.optim.AdamW([{"params": frozen}, {"params": others}, {"params": [first]}], lr=1e-2)


class Blockwise(torch.optim.Optimizer):
    """8-bit momentum with a scale for every 32 elements, as 8-bit optimizers keep it."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 1e-3})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # noqa: ARG002 - torch's signature
        for group in self.param_groups:
            for parameter in group["params"]:
                state, count = self.state[parameter], parameter.numel()
                blocks = -(-count // 32)
                if not state:
                    state["quantized"] = torch.zeros(count, dtype=torch.int8)
                    state["scale"] = torch.zeros(blocks)
                pad = (0, 32 * blocks - count)
                old = torch.nn.functional.pad(state["quantized"].float(), pad).view(blocks, 32)
                momentum = torch.nn.functional.pad(parameter.grad.float().flatten(), pad)
                momentum = momentum.view(blocks, 32) + old * state["scale"][:, None] * (0.9 / 127)
                state["scale"] = momentum.abs().amax(1)
                scaled = momentum / state["scale"].clamp_min(1e-12)[:, None] * 127
                state["quantized"] = scaled.round().to(torch.int8).flatten()[:count]
                parameter.add_(momentum.flatten()[:count].view_as(parameter), alpha=-group["lr"])


UNTESTED = {"zero_allow_untested_optimizer": True}
BF16 = {"enabled": True}
KINDS = ("Adamax", "RMSprop", "Adadelta", "Adagrad", "ASGD", "Rprop")
CASES: dict[str, Case] = {
    "accumulation, clipping, bf16, hpZ": Case(
        {
            "train_batch_size": 12,
            "gradient_accumulation_steps": 3,
            "gradient_clipping": 0.1,
            "bf16": BF16 | {"check_grad_overflow": True},
            "prescale_gradients": False,
            "gradient_predivide_factor": 1.0,
            "communication_data_type": "fp32",
            "data_types": {"grad_accum_dtype": "fp32"},
            "managed_gradient_accumulation": True,
        },
        {"zero_hpz_partition_size": 1},
    ),
    "bf16 states": Case(
        {"bf16": BF16 | {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}}
    ),
    "fp16, a scale that moves": Case(
        {
            "fp16": {
                "enabled": True,
                "auto_cast": True,
                "loss_scale": 0,
                "initial_scale_power": 12,
                "loss_scale_window": 2,
                "hysteresis": 2,
                "consecutive_hysteresis": True,
                "min_loss_scale": 1,
            }
        },
        scale=10**6,
    ),
    "autocast bf16": Case({"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}),
    "autocast fp16": Case(
        {
            "torch_autocast": {
                "enabled": True,
                "dtype": "float16",
                "lower_precision_safe_modules": ["torch.nn.Linear"],
            }
        }
    ),
    "sub-groups, small buckets": Case(
        zero={
            "sub_group_size": 1000,
            "contiguous_gradients": True,
            "reduce_scatter": False,
            "reduce_bucket_size": 500,
            "use_multi_rank_bucket_allreduce": False,
            "allgather_partitions": False,
            "allgather_bucket_size": 500,
            "overlap_comm": True,
            "round_robin_gradients": True,
            "ignore_unused_parameters": False,
            "load_from_fp32_weights": False,
            "memory_efficient_linear": False,
            "override_module_apply": False,
            "log_trace_cache_warnings": True,
            "enable_sanity_checks": True,
            "pipeline_loading_checkpoint": True,
            "leaf_module": {"names": ["middle"]},
            "stage3_prefetch_bucket_size": 100,
            "stage3_model_persistence_threshold": 200,
            "stage3_max_live_parameters": 100,
            "stage3_max_reuse_distance": 10,
            "stage3_gather_16bit_weights_on_model_save": True,
            "stage3_module_granularity_threshold": 0,
            "stage3_use_all_reduce_for_fetch_params": True,
            "stage3_allgather_sequential": True,
        }
    ),
    "offloaded parameters and optimizer": Case(
        {"zero_force_ds_cpu_optimizer": False, "bf16": BF16},
        {
            "offload_optimizer": {
                "device": "cpu",
                "pin_memory": False,
                "buffer_count": 3,
                "fast_init": True,
                "pipeline_read": True,
                "pipeline_write": True,
                "ratio": 1.0,
            },
            "offload_param": {
                "device": "cpu",
                "pin_memory": False,
                "buffer_count": 3,
                "buffer_size": 100000,
                "max_in_cpu": 100000,
            },
        },
    ),
    "the old names of offloading": Case(
        {"zero_force_ds_cpu_optimizer": False},
        {"cpu_offload": True, "cpu_offload_param": True, "cpu_offload_use_pin_memory": False},
    ),
    "a client's AdamW, looked on": Case(
        {
            "wall_clock_breakdown": True,
            "disable_allgather": True,
            "disable_python_gc": False,
            "dataloader_drop_last": True,
            "vocabulary_size": 64,
            "flops_profiler": {"enabled": True, "profile_step": 2},
            "comms_logger": {"enabled": True},
        },
        optimizer=lambda model: torch.optim.AdamW(trained(model), lr=1e-2),
    ),
    "AdamW, WarmupLR": named("AdamW", torch_adam=True) | scheduled("WarmupLR", warmup_num_steps=5),
    "Adam, WarmupDecayLR": named("Adam", torch_adam=True, adam_w_mode=False)
    | scheduled("WarmupDecayLR", warmup_num_steps=3, total_num_steps=9),
    "SGD, WarmupCosineLR": named("SGD", momentum=0.9, nesterov=True)
    | scheduled("WarmupCosineLR", warmup_num_steps=3, total_num_steps=9),
    "RAdam, LRRangeTest": named("RAdam") | scheduled("LRRangeTest", lr_range_test_step_size=2),
    "NAdam, OneCycle": named("NAdam")
    | scheduled("OneCycle", cycle_min_lr=1e-3, cycle_max_lr=1e-2, cycle_first_step_size=3),
    **{kind: named(kind) for kind in KINDS},
    "two groups, WarmupLR, bf16": Case(
        {
            "bf16": BF16,
            "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 20}},
        },
        groups=without_decay_of_biases,
    ),
    "a client's fused AdamW": Case(
        optimizer=lambda model: torch.optim.AdamW(trained(model), lr=1e-2, fused=True)
    ),
    "a client's AdamW, amsgrad, a rate that is a tensor": Case(
        UNTESTED,
        optimizer=lambda model: torch.optim.AdamW(
            trained(model), lr=torch.tensor(1e-2), amsgrad=True
        ),
    ),
    "a client's Adafactor": Case(
        UNTESTED, optimizer=lambda model: torch.optim.Adafactor(trained(model), lr=1e-2)
    ),
    "a client's Blockwise, sub-groups": Case(
        UNTESTED, {"sub_group_size": 1000}, optimizer=lambda model: Blockwise(trained(model))
    ),
    "a group that is frozen, bf16, accumulation": Case(
        {"bf16": BF16, "train_batch_size": 8, "gradient_accumulation_steps": 2},
        optimizer=with_frozen_group,
    ),
}


MUON = named("Muon", momentum=0.9, torch_adam=True)
REFUSED: dict[str, Case] = {
    "stage 0": Case({"bf16": BF16}, {"stage": 0}),
    "stage 1": Case({"bf16": BF16}, {"stage": 1}),
    "stage 2": Case({"bf16": BF16}, {"stage": 2}),
    "no stage": Case({"zero_optimization": {}}),
    "Muon": replace(MUON, zero={"reduce_scatter": False}),
    "Muon, momentum in memory": replace(
        MUON, zero={"reduce_scatter": False, "save_muon_momentum_buffer_in_memory": True}
    ),
}
"""What engines are made of, and no checkpoints taken. (Twin-Flow makes one beside a GPU only.)"""


class Net(torch.nn.Module):
    """Trained, frozen and tied parameters, and a buffer that moves."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(24, 32)
        self.frozen = torch.nn.Linear(32, 32).requires_grad_(False)
        self.middle = torch.nn.Linear(32, 32)
        self.last = torch.nn.Linear(32, 32)
        self.last.weight = self.middle.weight
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen.add_(1)
        hidden = torch.tanh(self.frozen(torch.tanh(self.first(tensor))))
        return self.last(torch.tanh(self.middle(hidden))).float().pow(2).mean()


def build(case: Case, seed: int) -> Any:
    torch.manual_seed(seed)
    model = Net()
    parameters = case.groups(model) if case.groups else trained(model)
    options: dict[str, Any] = {"model_parameters": parameters}
    if case.optimizer is not None:
        options = {"optimizer": case.optimizer(model)}
    return deepspeed.initialize(model=model, config=case.configuration(), **options)[0]


def digests(engine: Any, state: DeepSpeedState) -> dict[str, str]:
    """Return a digest of each section, and of the parameters that the model computes with."""
    tensors = {s.name: t for s, t in zip(state.sections, state.live(), strict=True)}
    tensors |= {f"weight/{name}": p.ds_tensor for name, p in engine.module.named_parameters()}
    return {name: digest(tensor) for name, tensor in tensors.items()}


def digest(tensor: torch.Tensor | None) -> str:
    if tensor is None:
        return ""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()


def train(engine: Any, first: int, iterations: int, scale: int) -> list[float]:
    losses = []
    dtype = next(engine.module.parameters()).dtype
    for iteration in range(first, first + iterations):
        for micro in range(engine.gradient_accumulation_steps()):
            random = torch.Generator().manual_seed(100 * iteration + micro)
            loss = engine(torch.randn(4, 24, generator=random).to(dtype))
            losses.append(float(loss))
            engine.backward(loss * scale if iteration in (2, 5) else loss)  # overflows, in fp16
            engine.step()
    return losses


def try_case(case: Case) -> str:
    engine = build(case, seed=0)
    state = DeepSpeedState(engine)
    moved: set[str] = set()
    ended: dict[str, str] = {}

    def before_update(*_: Any) -> None:
        """Find what is updated before the step that a checkpoint holds back."""
        now = digests(engine, state) if ended else {}
        moved.update(name for name in now if now[name] != ended[name] and name[:6] != "buffer")
        ended.clear()

    assert state.optimizer is not None
    state.optimizer.register_step_pre_hook(before_update)
    unheld: set[str] = set()
    for iteration in range(BEFORE):
        train(engine, iteration, 1, case.scale)
        now = digests(engine, state)
        # Nobody asked before it: an update that a checkpoint cannot hold back, or none at all.
        unheld.update(name for name in ended if now[name] != ended[name] and name[:6] != "buffer")
        ended.update(now)
    ended.clear()
    part = torch.zeros(part_bytes(state.sections), dtype=torch.uint8)
    for section, tensor in zip(state.sections, state.live(), strict=True):
        copy_section(section, part, tensor)
    meta = encode(state.meta())
    engine_skipped = engine.skipped_steps
    losses = train(engine, BEFORE, AFTER, case.scale)
    engine_again = build(case, seed=1)
    again = DeepSpeedState(engine_again)
    again.restore(WholeSections.of(part, state.sections), decode(meta))
    losses_again = train(engine_again, BEFORE, AFTER, case.scale)
    end, end_again = digests(engine, state), digests(engine_again, again)
    differ = [name for name in end if end[name] != end_again.get(name)]
    if losses != losses_again:
        differ.append(f"losses {losses} and {losses_again}")
    if case.scale > 1 and not engine_again.skipped_steps > engine_skipped > 0:
        differ.append("nothing overflowed")
    if encode(state.meta()) != encode(again.meta()):
        differ.append("meta")
    differ += [f"{name}, which moves before the step" for name in sorted(moved)]
    differ += [f"{name}, which moves without the step's hook" for name in sorted(unheld)]
    return ", ".join(differ) or "exact"


def try_refused(case: Case) -> str:
    """Return the sentence by which a case is refused; "" where it is not."""
    engine = build(case, seed=0)
    try:
        DeepSpeedState(engine)
    except ValueError as error:
        return str(error)
    return ""


def leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{path}{name}.")
        else:
            yield path + name, value


def main() -> None:
    accelerator = type(get_accelerator())
    accelerator.is_fp16_supported = lambda *_: True  # torch computes with it on a CPU, too, slowly
    deepspeed.init_distributed("gloo")
    found = {}
    for name, case in CASES.items():
        try:
            found[name] = try_case(case)
        except Exception as error:  # noqa: BLE001 - the test shows it, for each case
            found[name] = f"{type(error).__name__}: {error}"
        gc.collect()
    refused = {name: try_refused(case) for name, case in REFUSED.items()}
    used: dict[str, list[Any]] = {}
    for case in CASES.values():
        for key, value in leaves(case.configuration()):
            used.setdefault(key, []).append(value)
    Path(sys.argv[1]).write_text(json.dumps({"found": found, "refused": refused, "used": used}))


if __name__ == "__main__":
    main()
