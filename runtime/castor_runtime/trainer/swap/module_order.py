"""The order in which DeepSpeed's ZeRO-3 uses its modules, taken from one engine to another.

DeepSpeed (0.19.8) takes it down in the second iteration of an engine, and gathers ahead by it from
the third; what is gathered when has to be the same on all ranks. A spare has no order. So after a
failure survivors would have to forget theirs, and two iterations would gather nothing ahead.
Instead all go by the survivors': modules have the same numbers in every process of a job, which
DeepSpeed checks whenever it takes the order down. It is a guess at what comes next, and never more:
where a module comes that is not the expected one, DeepSpeed drops it, on all ranks at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final

from deepspeed.runtime.zero.partitioned_param_coordinator import ZeRoTraceMode

_OWN: Final = "_PartitionedParameterCoordinator__"
NEEDED: Final = tuple(
    _OWN + name
    for name in (
        "most_recent_step_id_param_fetched_for",
        "param_order",
        "param_queue",
        "step_id",
        "step_id_module_fetched_for",
        "submodule_order",
        "trace_mode",
    )
)
"""Attributes of the coordinator that are read or set here."""


def order_of(coordinator: Any) -> tuple[int, ...]:
    """Return the modules' numbers in the order of an iteration; () where it is not known."""
    if not coordinator.is_complete_trace():
        return ()
    return tuple(int(module.ds_id) for module in vars(coordinator)[_OWN + "submodule_order"])


def follow(coordinator: Any, modules: Iterable[Any], order: Sequence[int]) -> bool:
    """Have an engine that has forgotten its order go by this one; False: it has no such module.

    Args:
        coordinator: of the engine, without a trace.
        modules: all of the engine.
        order: the numbers of its modules, not empty.
    """
    by_number = {int(module.ds_id): module for module in modules if hasattr(module, "ds_id")}
    if not by_number.keys() >= set(order):
        return False
    own = vars(coordinator)
    own[_OWN + "trace_mode"] = ZeRoTraceMode.RECORD
    for number in order:
        module = by_number[number]
        coordinator.record_module(module)
        own[_OWN + "step_id"] += 1
    coordinator.construct_parameter_trace_from_module_trace()
    for name in ("submodule_order", "param_order"):
        own[_OWN + name] = tuple(own[_OWN + name])
    own[_OWN + "trace_mode"] = ZeRoTraceMode.COMPLETE
    # As `reset_step` leaves them between two iterations.
    own[_OWN + "param_queue"] = deque(own[_OWN + "param_order"])
    own[_OWN + "most_recent_step_id_param_fetched_for"].clear()
    own[_OWN + "step_id_module_fetched_for"].clear()
    own[_OWN + "step_id"] = 0
    return True
