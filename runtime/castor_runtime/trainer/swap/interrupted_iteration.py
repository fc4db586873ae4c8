"""Throws away what an interrupted iteration left in a DeepSpeed engine (0.19.8, ZeRO-3).

Afterwards the engine stands as `deepspeed.initialize` returned it, apart from the state that a
checkpoint holds (`DeepSpeedState`): what is restored then is restored as after a restart, and
that is exact. So no account is needed of where the iteration was interrupted, and survivors and a
spare that never trained ask for the same collectives from then on. (They would not if survivors
alone kept DeepSpeed's trace of the model: all ranks go by it, or none; see `retrace`.)

What an iteration changes, and where it is set back:

- the coordinator that gathers parameters: what is in flight, its trace, queue and counters, the
  modules in backward (`_forget_fetches`);
- each parameter: whether it is gathered, for which modules, its gradient (`_release`);
- each module: counts of forwards whose backward is to come, that a forward runs, parameters of
  other modules that it was seen to use, and the stack of modules in forward (`_forget_forward`);
- the optimizer: what the hooks of a backward count, gradients in buckets and partitions, which of
  them are reduced, the micro-step, the flag that an overflow was seen (`_forget_gradients`);
- the engine: flags of a backward or step under way, timers that run (`_forget_step`).

Left as they are, because nothing reads them before the next iteration sets them: norms and
`_step_applied`; sums of timers and throughput, which are for reports only. Counters,
schedules, loss scale and options of the optimizer are in the checkpoint's meta.
`tests/runtime/test_interrupted_iteration.py` interrupts an iteration at each of its collectives
and compares all that the engine reaches with what it was when it was built.
"""

from __future__ import annotations

import json
from collections import deque
from typing import Any, Final

import deepspeed
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.base_optimizer import BackwardHookStateManager
from deepspeed.runtime.zero import parameter_offload
from deepspeed.runtime.zero.parameter_offload import ZeROOrderedDict
from deepspeed.runtime.zero.partition_parameters import AllGatherCoalescedHandle, free_param
from deepspeed.runtime.zero.partitioned_param_coordinator import ZeRoTraceMode

from castor_runtime.trainer.swap.errors import CannotSwapError
from castor_runtime.trainer.swap.module_order import NEEDED, OWN, ModuleOrder

VERSION: Final = "0.19.8"
"""Of DeepSpeed: its attributes have no public interface."""

_NEEDED: Final = {
    "engine": (
        "_running_engine_step",
        "_running_engine_backward",
        "_running_engine_backward_count",
        "_manual_backward_expected",
        "_unmanaged_backward_count",
        "tput_timer",
        "timers",
    ),
    "optimizer": (
        "_backward_hook_state",
        "_is_gradient_accumulation_boundary",
        "_offload_boundary_param_ids",
        "averaged_gradients",
        "fp32_partitioned_groups_flat",
        "grad_partitions_flat_buffer",
        "inf_or_nan_tracker",
        "ipg_buckets",
        "micro_step_id",
        "param_reduce_events",
        "params_already_reduced",
        "parameter_offload",
        "torch_autocast_gradscaler",
    ),
    "coordinator": (
        *NEEDED,
        *(
            OWN + name
            for name in (
                "active_backward_submodules",
                "inflight_param_registry",
                "n_available_params",
                "ongoing_fetch_events",
                "ongoing_fetch_leaf_module_events",
                "params_to_release",
                "profiler",
            )
        ),
    ),
}


class InterruptedIteration:
    """Sets one engine back; made when the engine is new, before it trains.

    Args:
        engine: what `deepspeed.initialize` returned, with ZeRO stage 3.

    Raises:
        CannotSwapError: this DeepSpeed, or a feature that the engine uses, is not known here.
    """

    def __init__(self, engine: Any) -> None:
        if deepspeed.__version__.split("+")[0] != VERSION:
            raise CannotSwapError(
                f"an iteration of DeepSpeed {deepspeed.__version__} cannot be thrown away: it is "
                f"known how for {VERSION} only"
            )
        self._engine = engine
        self._zero = engine.optimizer
        self._coordinator = self._zero.parameter_offload.get_param_coordinator()
        held = {"engine": engine, "optimizer": self._zero, "coordinator": self._coordinator}
        for what, names in _NEEDED.items():
            missing = [name for name in names if not hasattr(held[what], name)]
            if missing:
                raise CannotSwapError(f"DeepSpeed's {what} has no {', '.join(missing)}")
        _refuse_unknown(engine)
        self._external = [
            (module, dict(module._external_params)) for module in engine.module.modules()
        ]
        self._is_external = [
            (parameter, parameter.is_external_param) for parameter in engine.module.parameters()
        ]
        self._order: ModuleOrder | None = None

    def throw_away(self) -> None:
        """Set the engine back to what it was when it was new, but for a checkpoint's state.

        No collective. Nothing may write into its tensors any more: the groups have ended, and
        let go (`Groups.let_go_all`). Live state is void until it is restored.
        """
        get_accelerator().synchronize()
        self._order = ModuleOrder.of(self._coordinator, self._engine.module)
        self._forget_fetches()
        self._release()
        self._forget_forward()
        self._forget_gradients()
        self._forget_step()

    def trace(self) -> bytes:
        """Return the order of the modules that was known when an iteration was thrown away."""
        return b"" if self._order is None else json.dumps(self._order.to_json()).encode()

    def retrace(self, trace: bytes) -> bool:
        """Go by that order of another rank, or by none again; False: it fits no module here.

        Args:
            trace: what another rank's `trace` returned; b"": there is none.
        """
        if trace:
            order = ModuleOrder.from_json(json.loads(trace))
            return order.give(self._coordinator, self._engine.module)
        self._forget_fetches()
        self._forget_forward()
        return True

    def _forget_fetches(self) -> None:
        """Drop gathers under way and the trace of the model."""
        coordinator = self._coordinator

        def own(name: str) -> Any:
            return getattr(coordinator, OWN + name)

        own("inflight_param_registry").clear()
        AllGatherCoalescedHandle.free_buffer()
        coordinator._clear_trace_structures()
        vars(coordinator)[OWN + "trace_mode"] = ZeRoTraceMode.INVALID
        vars(coordinator)[OWN + "step_id"] = 0
        vars(coordinator)[OWN + "n_available_params"] = 0
        coordinator.hierarchy = 0
        own("ongoing_fetch_events").clear()
        own("ongoing_fetch_leaf_module_events").clear()
        own("active_backward_submodules").clear()
        own("profiler").reset_events()
        # What to release after a module is remembered, for the trace that is gone.
        _cached(own("params_to_release")).cache_clear()

    def _release(self) -> None:
        """Leave of each parameter this rank's partition only."""
        for parameter in self._engine.module.parameters():
            parameter.ds_active_sub_modules.clear()
            free_param(parameter)
            parameter.grad = None

    def _forget_forward(self) -> None:
        """Forget what modules count and learn in a forward."""
        for module, external in self._external:
            module._external_params = dict(external)
            module.ds_recompute_parameters.clear()
            for count in ("ds_grads_remaining", "applied_pre_backward_ref_cnt"):
                module.__dict__.pop(count, None)
            if isinstance(module._parameters, ZeROOrderedDict):
                module._parameters._in_forward = False
        for parameter, is_external in self._is_external:
            parameter.is_external_param = is_external
        stack = parameter_offload.FWD_MODULE_STACK
        del stack[stack.index(self._zero.parameter_offload.module) + 1 :]

    def _forget_gradients(self) -> None:
        """Drop gradients, wherever they are, and what was noted of them."""
        zero = self._zero
        hooks = BackwardHookStateManager()
        hooks._grad_acc_post_hooks = zero._backward_hook_state._grad_acc_post_hooks
        vars(zero._backward_hook_state).update(vars(hooks))
        zero._is_gradient_accumulation_boundary = True
        zero.micro_step_id = 0
        zero._offload_boundary_param_ids = set()
        zero.averaged_gradients = {}
        zero.params_already_reduced = dict.fromkeys(zero.params_already_reduced, False)
        zero.param_reduce_events = deque()
        for bucket in zero.ipg_buckets.values():
            bucket.clear_params()
        # A parameter that an iteration does not use keeps what its gradient was before.
        zero.grad_partitions_flat_buffer.zero_()
        zero.inf_or_nan_tracker.zero_()
        if zero.offload_optimizer:
            zero.norm_for_param_grads = {}
            for master in zero.fp32_partitioned_groups_flat:
                if master.grad is not None:
                    master.grad.zero_()
        else:
            for master in zero.fp32_partitioned_groups_flat:
                master.grad = None
        for group in zero.optimizer.param_groups:
            group["params"] = []  # DeepSpeed lends the optimizer one sub-group at a time
        if zero.torch_autocast_gradscaler is not None:
            zero.torch_autocast_gradscaler._per_optimizer_states.clear()

    def _forget_step(self) -> None:
        """End what runs in the engine."""
        engine = self._engine
        engine._running_engine_backward = False
        engine._running_engine_backward_count = 0
        engine._running_engine_step = False
        engine._manual_backward_expected = False
        engine._unmanaged_backward_count = 0
        engine.tput_timer.started = False
        for timer in engine.timers.timers.values():
            timer.reset()


def _cached(method: Any) -> Any:
    """Return the function with a cache that DeepSpeed's `instrument_w_nvtx` hides in a closure."""
    wrapper = method.__func__
    return dict(zip(wrapper.__code__.co_freevars, wrapper.__closure__, strict=True))[
        "func"
    ].cell_contents


def _refuse_unknown(engine: Any) -> None:
    """Refuse what keeps more than is set back here."""
    zero = engine.optimizer
    for used, what in (
        (engine.flops_profiler_enabled(), "its flops profiler"),
        (engine.is_deepcompile_active(), "DeepCompile"),
        (zero.zero_hpz_partition_size > 1, "secondary partitions (zero_hpz_partition_size)"),
        (zero.swap_optimizer or zero.params_in_nvme_and_cpu, "state on NVMe"),
        (zero.zenflow, "ZenFlow"),
        (zero.use_muon, "Muon"),
    ):
        if used:
            raise CannotSwapError(
                f"an iteration cannot be thrown away when the engine uses {what}: "
                "this trainer has to be restarted instead"
            )
