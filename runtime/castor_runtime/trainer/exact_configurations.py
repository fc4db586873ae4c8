"""DeepSpeed configurations with which training goes on bit for bit after a recovery.

A list of what is known to be exact, not of what is known to be bad: a new version of DeepSpeed adds
variants of ZeRO-3 that update outside the optimizer's step, or keep state in places of their own,
and each would be checkpointed wrongly without a word. An option is on it because a test restores
with it bit for bit, or for a reason in DeepSpeed's source. Names are those of version 0.19.8
(`deepspeed/runtime/config.py`, `runtime/zero/config.py`, `runtime/zero/offload_config.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

STAGE_3 = "stage3_"
"""DeepSpeed takes some options of `zero_optimization` with and without this in front."""

_ANY: frozenset[Any] = frozenset()
"""Whatever the value is, the option decides nothing that a checkpoint has to hold."""

_ZERO = "zero_optimization"
TRIED: dict[str, frozenset[Any]] = {
    **dict.fromkeys(
        (
            "train_batch_size",
            "train_micro_batch_size_per_gpu",
            "gradient_accumulation_steps",
            "gradient_clipping",
            "prescale_gradients",
            "gradient_predivide_factor",
            "communication_data_type",
            "steps_per_print",
            "wall_clock_breakdown",
            "disable_allgather",
            "disable_python_gc",
            "dataloader_drop_last",
            "vocabulary_size",
            "zero_allow_untested_optimizer",
            "zero_force_ds_cpu_optimizer",
            "data_types.grad_accum_dtype",
            "torch_autocast.enabled",
            "torch_autocast.dtype",
            "torch_autocast.lower_precision_safe_modules",
            "bf16.enabled",
            "bf16.check_grad_overflow",
            "bf16.bf16_master_weights_and_grads",
            "bf16.bf16_optimizer_states",
            "fp16.enabled",
            "fp16.auto_cast",
            "fp16.loss_scale",
            "fp16.initial_scale_power",
            "fp16.loss_scale_window",
            "fp16.hysteresis",
            "fp16.consecutive_hysteresis",
            "fp16.min_loss_scale",
        ),
        _ANY,
    ),
    **{
        f"{_ZERO}.{name}": _ANY
        for name in (
            "contiguous_gradients",
            "reduce_scatter",
            "reduce_bucket_size",
            "use_multi_rank_bucket_allreduce",
            "allgather_partitions",
            "allgather_bucket_size",
            "overlap_comm",
            "load_from_fp32_weights",
            "sub_group_size",
            "ignore_unused_parameters",
            "round_robin_gradients",
            "memory_efficient_linear",
            "override_module_apply",
            "log_trace_cache_warnings",
            "enable_sanity_checks",
            "pipeline_loading_checkpoint",
            "zero_hpz_partition_size",
            "leaf_module.names",
            "cpu_offload",
            "cpu_offload_param",
            "cpu_offload_use_pin_memory",
            "offload_param.pin_memory",
            "offload_param.buffer_count",
            "offload_param.buffer_size",
            "offload_param.max_in_cpu",
            "offload_optimizer.pin_memory",
            "offload_optimizer.buffer_count",
            "offload_optimizer.pipeline_read",
            "offload_optimizer.pipeline_write",
            "offload_optimizer.fast_init",
            *(
                f"{prefix}{name}"
                for prefix in ("", STAGE_3)
                for name in (
                    "prefetch_bucket_size",
                    "param_persistence_threshold",
                    "model_persistence_threshold",
                    "max_live_parameters",
                    "max_reuse_distance",
                    "gather_16bit_weights_on_model_save",
                    "module_granularity_threshold",
                    "use_all_reduce_for_fetch_params",
                    "allgather_sequential",
                )
            ),
        )
    },
    f"{_ZERO}.stage": frozenset({3}),
    f"{_ZERO}.offload_param.device": frozenset({"none", "cpu"}),
    f"{_ZERO}.offload_optimizer.device": frozenset({"none", "cpu"}),
    f"{_ZERO}.offload_optimizer.ratio": frozenset({1.0}),
    "managed_gradient_accumulation": frozenset({True}),
    "optimizer.type": frozenset(
        {
            "adam",
            "adamw",
            "sgd",
            "nadam",
            "radam",
            "adamax",
            "rmsprop",
            "adadelta",
            "adagrad",
            "asgd",
            "rprop",
        }
    ),
    "scheduler.type": frozenset(
        {"lrrangetest", "onecycle", "warmuplr", "warmupdecaylr", "warmupcosinelr"}
    ),
}
"""Options each of which some case of tests/runtime/exact_cases.py uses, restored bit for bit."""

READ: dict[str, frozenset[Any]] = {
    # Arguments of a type that was tried: hyperparameters lie in param_groups and in the schedule.
    "optimizer.params.*": _ANY,
    "scheduler.params.*": _ANY,
    # What DeepSpeedCPUAdam keeps beside them is replayed (`running_powers.py`).
    # Needs a GPU. Moment and step lie in `optimizer.state` (ops/lion/fused_lion.py, cpu_lion.py),
    # and the C++ object keeps a copy of the step only (csrc/includes/cpu_lion.h, IncrementStep).
    # So do those of FusedAdam, which the types adam and adamw mean on a GPU.
    "optimizer.type": frozenset({"lion"}),
    # They look on: printed, written to a file, or sent to a service.
    "memory_breakdown": _ANY,
    "dump_state": _ANY,
    "log_level": _ANY,
    "timers.*": _ANY,
    "comms_logger.*": _ANY,
    "flops_profiler.*": _ANY,
    "csv_monitor.*": _ANY,
    "tensorboard.*": _ANY,
    "wandb.*": _ANY,
    "comet.*": _ANY,
    # Read by engine.save_checkpoint and engine.save_16bit_model only.
    "checkpoint.tag_validation": _ANY,
    "checkpoint.use_node_local_storage": _ANY,
    "checkpoint.parallel_write.*": _ANY,
    f"{_ZERO}.stage3_gather_fp16_weights_on_model_save": _ANY,
    # What is recomputed lives within one forward and backward pass.
    "activation_checkpointing.*": _ANY,
    # Of files on NVMe, and devices on NVMe are refused.
    "aio.*": _ANY,
    # DeepSpeed's own defaults, written out.
    "sequence_parallel_size": frozenset({1}),
    "tensor_parallel.autotp_size": frozenset({0, 1}),
}
"""Options that no trial here shows, with the reason in DeepSpeed's source why they are exact."""

_OFF = (False, None, 0, "none")
"""Values that leave out an option that is not listed; those on by default are."""

_WHY = {
    f"{_ZERO}.stage": "only ZeRO stage 3 keeps each rank's state as Castor reads it; set it to 3",
    f"{_ZERO}.offload_optimizer.device": (
        'Castor cannot read state that DeepSpeed keeps on NVMe; set it to "cpu" or leave it out'
    ),
    f"{_ZERO}.offload_param.device": (
        'Castor cannot read state that DeepSpeed keeps on NVMe; set it to "cpu" or leave it out'
    ),
    f"{_ZERO}.offload_optimizer.ratio": (
        "below 1 a second optimizer inside DeepSpeed updates the rest, and Castor would hold "
        "neither its state nor its moment of update; set it to 1.0"
    ),
    f"{_ZERO}.offload_optimizer.super_offload": (
        "SuperOffload updates in processes of its own, while the backward pass still runs, so no "
        "checkpoint is one moment; leave it out"
    ),
    f"{_ZERO}.zenflow": (
        "ZenFlow updates outside the optimizer's step, and keeps gradients over from one to the "
        "next; leave it out"
    ),
    f"{_ZERO}.zero_quantized_nontrainable_weights": (
        "the scales of quantized frozen parameters are in no checkpoint; leave it out"
    ),
    "optimizer.type": (
        "its update was not shown to be exact after a recovery (Muon changes its momentum before "
        "the optimizer's step); use AdamW, or give deepspeed.initialize an optimizer of torch"
    ),
}

_UNKNOWN = "it was not shown that training goes on exactly after a recovery with it; leave it out"


class InexactError(ValueError):
    """A DeepSpeed configuration that is not known to be exact; names the option and what to do."""


def refuse_inexact(configuration: Mapping[str, Any]) -> None:
    """Refuse a configuration that is not known to be exact.

    Args:
        configuration: DeepSpeed's, as the user gave it.

    Raises:
        InexactError: names every option that is not on the list, by its dotted key.
    """
    faults = [
        f"{key} = {value!r}: {_why(key)}"
        for key, value in _leaves(configuration, "")
        if not _is_exact(key, value)
    ]
    if faults:
        raise InexactError(
            "Castor checkpoints what is known to be exact after a recovery, and DeepSpeed's "
            "configuration asks for more: " + "; ".join(faults)
        )


def refuse_inexact_engine(engine: Any) -> None:
    """Refuse what an engine does that its configuration may not say.

    Also replaces the engine's `offload_states`, which would take the state away under a checkpoint.

    Args:
        engine: a `DeepSpeedEngine` with ZeRO stage 3 and an optimizer.

    Raises:
        InexactError: names it.
    """
    zero = engine.optimizer
    kinds = (type(engine).__name__, type(zero).__name__)
    faults: dict[str, Callable[[], Any]] = {
        f"an engine of type {kinds[0]}: use the DeepSpeedEngine of deepspeed.initialize": (
            lambda: kinds[0] != "DeepSpeedEngine"
        ),
        f"a ZeRO optimizer of type {kinds[1]}: use DeepSpeedZeroOptimizer_Stage3": (
            lambda: kinds[1] != "DeepSpeedZeroOptimizer_Stage3"
        ),
        "ZenFlow, which updates outside the optimizer's step: leave it out": (
            lambda: getattr(zero, "zenflow", False)
        ),
        "Muon, which changes its momentum before the optimizer's step: use AdamW": (
            lambda: getattr(zero, "use_muon", False)
        ),
        "mixture-of-experts layers, whose groups of ranks are others": (
            lambda: engine.has_moe_layers
        ),
        "tensor or pipeline parallelism (mpu)": lambda: engine.mp_world_size > 1,
        "states that engine.offload_states() took away: call engine.reload_states() first": (
            lambda: zero.offloaded_states
        ),
    }
    found = [words for words, holds in faults.items() if holds()]
    if found:
        raise InexactError(
            "Castor checkpoints what is known to be exact after a recovery, and this engine has "
            + "; ".join(found)
        )
    engine.offload_states = functools.partial(_refuse_offloading)


def _refuse_offloading(*_: Any, **__: Any) -> None:
    raise InexactError(
        "engine.offload_states() takes the state away while Castor copies it, so no checkpoint "
        "would be whole: leave it out, or train without Checkpointer"
    )


def _leaves(tree: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values, without the sections that are switched off."""
    for name, value in tree.items():
        key = f"{path}{name}"
        if not isinstance(value, Mapping):
            yield key, value
        elif value.get("enabled", True):
            yield from _leaves(value, f"{key}.") if value else iter(())


def _is_exact(key: str, value: Any) -> bool:
    listed = [known[key] for known in (TRIED, READ) if key in known]
    if listed:
        return value is None or any(one is _ANY or _plain(value) in one for one in listed)
    parts = key.split(".")
    covers = (".".join(parts[:length]) + ".*" for length in range(1, len(parts)))
    return any(cover in READ for cover in covers) or any(value == off for off in _OFF)


def _plain(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _why(key: str) -> str:
    parts = key.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((_WHY[prefix] for prefix in prefixes if prefix in _WHY), _UNKNOWN)
