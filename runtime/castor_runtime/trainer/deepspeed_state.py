"""The state of one rank of DeepSpeed ZeRO-3, which has no public interface (DeepSpeed 0.19).

Sections: the rank's partition of the master weights (`fp32/<i>`, one a sub-group), the
optimizer's tensors over it (`exp_avg/<i>`, ...), partitions of frozen parameters (`frozen/<name>`)
and module buffers (`buffer/<name>`, while they are as they were at the start). The parameters that
the model computes with are derived: they are cast from the master weights, as DeepSpeed does after
each update and after loading its own checkpoints.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from castor_runtime.state.extra_state import extra_state_modules
from castor_runtime.state.meta import decode
from castor_runtime.state.module_buffers import ModuleBuffers
from castor_runtime.state.protocol import PersistentPart, Stateful
from castor_runtime.state.sections import Section, Sections, WholeSections, lay_out
from castor_runtime.trainer.exact_configurations import refuse_inexact, refuse_inexact_engine
from castor_runtime.trainer.optimizer_state import OptimizerState
from castor_runtime.trainer.running_powers import RunningPowers
from castor_runtime.trainer.unheld_state import FirstIterations

if TYPE_CHECKING:
    from castor_runtime.trainer.swap.interrupted_iteration import InterruptedIteration

_COUNTERS = ("global_steps", "global_samples", "micro_steps", "skipped_steps")
_SCHEDULED = ("lr_scheduler", "random_ltd_scheduler", "curriculum_scheduler_legacy")


class DeepSpeedState:
    """Reads and writes one rank's model states through its `DeepSpeedEngine`.

    Args:
        engine: what `deepspeed.initialize` returned, with ZeRO stage 3.

    Raises:
        ValueError: the engine keeps its state otherwise than ZeRO-3 in memory; says what to change.
    """

    def __init__(self, engine: Any) -> None:
        _check(engine)
        self._engine = engine
        self._zero = engine.optimizer
        self.optimizer: torch.optim.Optimizer | None = self._zero.optimizer
        masters = list(self._zero.fp32_partitioned_groups_flat)
        groups = [self._zero.sub_group_to_group_id[index] for index in range(len(masters))]
        self._optimizer_state = OptimizerState(self._zero.optimizer, masters, groups)
        self._frozen = _frozen_parameters(engine)
        self._extra = extra_state_modules(engine.module)
        self._powers = RunningPowers(self._zero.optimizer, masters, groups)
        _zero_padding(engine)
        self._buffers = ModuleBuffers(engine.module, self.device())
        self.clone_at_capture = frozenset(name for name, _, _ in self._buffers.tensors())
        self.trained = frozenset(
            [f"fp32/{index}" for index in range(len(masters))]
            + [name for name, _, _ in self._optimizer_state.tensors()]
        )
        self.sections: tuple[Section, ...] = lay_out(
            [(f"fp32/{i}", master.dtype, master.shape) for i, master in enumerate(masters)]
            + self._optimizer_state.tensors()
            + [
                (f"frozen/{name}", parameter.ds_tensor.dtype, parameter.ds_tensor.shape)
                for name, parameter in self._frozen
            ]
            + self._buffers.tensors()
        )

    def stepped(self) -> None:
        """Do nothing: DeepSpeed counts by itself."""

    def iteration(self) -> int:
        """Return DeepSpeed's count of updates, those that an overflow skipped included."""
        return int(self._engine.global_steps)

    def device(self) -> torch.device:
        """Return where the engine computes; offloaded master weights are on the CPU anyway."""
        return torch.device(self._engine.device)

    def live(self) -> list[torch.Tensor | None]:
        """Return the live tensor of each section; None where it does not exist, or is in `meta`."""
        return [
            *self._zero.fp32_partitioned_groups_flat,
            *self._optimizer_state.live(),
            *(parameter.ds_tensor for _, parameter in self._frozen),
            *self._buffers.live(),
        ]

    def meta(self) -> dict[str, Any]:
        """Return counters, schedules, loss scale, and the optimizer's options and step counts.

        Buffers too, where they are not as they were at the start.

        Raises:
            ValueError: the module has a buffer or a parameter that cannot be held; names it.
        """
        engine, zero = self._engine, self._zero
        scaler = {
            key: value
            for key, value in vars(zero.loss_scaler).items()
            if value is None or isinstance(value, bool | int | float | str | torch.dtype)
        }
        meta: dict[str, Any] = {
            "engine": {name: int(getattr(engine, name)) for name in _COUNTERS},
            "loss_scaler": scaler,
            "dynamic_loss_scale": bool(zero.dynamic_loss_scale),
            "overflow": bool(zero.overflow),
            "external_loss_scale": [zero.custom_loss_scaler, zero.external_loss_scale],
            "optimizer": self._optimizer_state.small(),
            "buffers": self._buffers.small(),
        }
        for name in _SCHEDULED:
            schedule: Any = getattr(engine, name, None)
            meta[name] = schedule.state_dict() if hasattr(schedule, "state_dict") else None
        grad_scaler = getattr(zero, "torch_autocast_gradscaler", None)
        meta["autocast_scaler"] = grad_scaler.state_dict() if grad_scaler else None
        if self._extra:
            meta["extra_state"] = {name: module.get_extra_state() for name, module in self._extra}
        meta["running_powers"] = self._powers.first
        return meta

    def restore(self, held: Sections, meta: Mapping[str, Any]) -> None:
        """Set the live state; collective, as parameters that every rank keeps whole are gathered.

        Args:
            held: what the live tensors are set to.
            meta: what `meta` returned.

        Raises:
            DamagedError: the checkpoint is not whole.
        """
        zero = self._zero
        zero.checkpoint_event_prologue()
        for index, master in enumerate(zero.fp32_partitioned_groups_flat):
            held.copy(f"fp32/{index}", master.data)
        self._optimizer_state.restore(meta["optimizer"], held)
        self._buffers.restore(meta["buffers"], held)
        for name, parameter in self._frozen:
            held.copy(f"frozen/{name}", parameter.ds_tensor.data)
        held.check()
        self._restore_outside(meta)
        for index, master in enumerate(zero.fp32_partitioned_groups_flat):
            zero.fp16_partitioned_groups_flat[index].data.copy_(master.data)
            zero._unflatten_partitioned_parameters(index)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].partition(zero.persistent_parameters)
        self._restore_schedules(meta)
        zero.checkpoint_event_epilogue()

    def restore_persistent(self, part: PersistentPart) -> dict[str, Any]:
        """Have `engine.load_checkpoint` load, and set what it leaves; collective.

        Raises:
            DamagedError: the checkpoint is not whole; nothing was changed.
        """
        from castor_runtime.persistent.deepspeed_format import load_rank  # noqa: PLC0415
        from castor_runtime.persistent.reading import whole_part  # noqa: PLC0415 - costs time

        with whole_part(part) as folder:
            loaded = load_rank(
                self._engine,
                folder,
                part.rank,
                # So that `engine.load_checkpoint` finds the buffers of the checkpoint.
                prepare=lambda meta: self._buffers.reshape(decode(meta)["buffers"]),
            )
        meta = decode(loaded.meta)
        self._optimizer_state.restore_attributes(meta["optimizer"])
        self._restore_outside(meta)
        self._buffers.restore(meta["buffers"], WholeSections(loaded.extra))
        self._restore_schedules(meta)
        return meta

    def interrupted_iteration(self) -> InterruptedIteration:
        """Return what makes the engine forget an iteration; ask while it is new.

        Raises:
            CannotSwapError: it uses what is not known there.
        """
        # It looks into DeepSpeed, which not every job has that has Castor.
        module: Any = importlib.import_module("castor_runtime.trainer.swap.interrupted_iteration")
        interrupted: InterruptedIteration = module.InterruptedIteration(self._engine)
        return interrupted

    def write_template(self, path: Path) -> None:
        """Write what DeepSpeed's files hold apart from tensors."""
        from castor_runtime.persistent.template import write_template  # noqa: PLC0415 - costs time

        write_template(self._engine, path)

    def watch_first_iterations(
        self, user: Mapping[str, Stateful], tell: Callable[[str], None]
    ) -> Callable[[], bool]:
        """Look for what training depends on and nobody's state holds."""
        return FirstIterations(self._engine, self._optimizer_state, user, tell).iteration_ended

    def _restore_outside(self, meta: Mapping[str, Any]) -> None:
        """Set what lies outside parameters, buffers and the optimizer's state."""
        for name, module in self._extra:
            module.set_extra_state(meta["extra_state"][name])
        self._powers.restore(meta["running_powers"])

    def _restore_schedules(self, meta: Mapping[str, Any]) -> None:
        engine, zero = self._engine, self._zero
        for name in _COUNTERS:
            setattr(engine, name, meta["engine"][name])
        vars(zero.loss_scaler).update(meta["loss_scaler"])
        zero.dynamic_loss_scale = meta["dynamic_loss_scale"]
        zero.overflow = meta["overflow"]
        zero.custom_loss_scaler, zero.external_loss_scale = meta["external_loss_scale"]
        for name in _SCHEDULED:
            if meta[name] is not None:
                getattr(engine, name).load_state_dict(meta[name])
        if meta["autocast_scaler"] is not None:
            zero.torch_autocast_gradscaler.load_state_dict(meta["autocast_scaler"])
        # Last: a schedule that is loaded may set the learning rate of its own accord.
        for group, options in zip(
            zero.optimizer.param_groups, meta["optimizer"]["param_groups"], strict=True
        ):
            group.update(options)


def _check(engine: Any) -> None:
    stage = engine.zero_optimization_stage() if hasattr(engine, "zero_optimization_stage") else None
    if stage != 3:
        raise ValueError(
            f"Checkpointer needs a DeepSpeed engine with ZeRO stage 3, this one has stage {stage}: "
            'set {"zero_optimization": {"stage": 3}} in its configuration'
        )
    zero = engine.optimizer
    if not hasattr(zero, "fp32_partitioned_groups_flat"):
        raise ValueError(
            "Checkpointer needs an engine that trains, and this one has no optimizer: give "
            "deepspeed.initialize(optimizer=...) or name one in its configuration"
        )
    refuse_inexact(engine._config._param_dict)
    refuse_inexact_engine(engine)
    if any(flat is None for flat in zero.fp16_partitioned_groups_flat):
        raise ValueError("Checkpointer cannot read parameters that were swapped out; keep them")


def _zero_padding(engine: Any) -> None:
    """Set what pads partitions to equal lengths to zero: DeepSpeed leaves it as memory was.

    Nothing reads it, but two runs would differ in it, and so would digests of their states.
    """
    zero = engine.optimizer
    trained = zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True)
    with torch.no_grad():
        for parameters, master in trained:
            offset = 0
            for parameter in parameters:
                length = parameter.ds_tensor.numel()
                padding = _padding(parameter)
                master.data[offset + length - padding : offset + length].zero_()
                offset += length
        for parameter in engine.module.parameters():
            held = parameter.ds_tensor.data.view(-1)
            held[held.numel() - _padding(parameter) :].zero_()


def _padding(parameter: Any) -> int:
    """Return how many of this rank's elements of a partitioned parameter are padding."""
    length = int(parameter.ds_tensor.numel())
    rank = int(parameter.ds_zero_partition_rank)
    real = int(parameter.ds_numel) - rank * length
    return length - max(0, min(length, real))


def _frozen_parameters(engine: Any) -> list[tuple[str, Any]]:
    """Return the partitioned parameters that no sub-group trains and that this rank has some of."""
    trained = {key for ids in engine.optimizer.fp16_partitioned_groups_flat_id for key in ids}
    return sorted(
        (
            (name, parameter)
            for name, parameter in engine.module.named_parameters()
            if hasattr(parameter, "ds_id")
            and parameter.ds_id not in trained
            and parameter.ds_tensor.numel()
        ),
        key=lambda item: item[0],
    )
