"""The order in which DeepSpeed's ZeRO-3 uses its modules, taken from one engine to another.

DeepSpeed (0.19.8) takes it down in the second iteration of an engine, and gathers ahead by it from
the third; what is gathered when has to be the same on all ranks. A spare has no order. So after a
failure survivors would have to forget theirs, and two iterations would gather nothing ahead.
Instead all go by the survivors': modules and parameters have the same numbers in every process of
a job, which DeepSpeed checks whenever it takes the order down. It is a guess at what comes next,
and never more: where a module comes that is not the expected one, DeepSpeed drops it, on all ranks
at once. With it go the parameters that modules were seen to use of others, in the first forward:
they are fetched by the order, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from deepspeed.runtime.zero.partitioned_param_coordinator import ZeRoTraceMode

OWN: Final = "_PartitionedParameterCoordinator__"
"""Before the names of the coordinator's private attributes."""

NEEDED: Final = tuple(
    OWN + name
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


@dataclass(frozen=True, slots=True)
class ModuleOrder:
    """What an engine goes by; numbers are `ds_id` of modules and parameters.

    Attributes:
        modules: in the order of an iteration, forward and backward.
        borrowed: module -> parameters of others that it uses.
        handed_out: parameters that their modules hand to others.
    """

    modules: tuple[int, ...]
    borrowed: Mapping[int, tuple[int, ...]]
    handed_out: tuple[int, ...]

    @classmethod
    def of(cls, coordinator: Any, model: Any) -> ModuleOrder | None:
        """Return what this engine goes by; None where it does not know an order."""
        if not coordinator.is_complete_trace():
            return None
        return cls(
            tuple(int(module.ds_id) for module in vars(coordinator)[OWN + "submodule_order"]),
            {
                int(module.ds_id): tuple(int(one.ds_id) for one in module._external_params.values())
                for module in model.modules()
                if module._external_params
            },
            tuple(int(one.ds_id) for one in model.parameters() if one.is_external_param),
        )

    def to_json(self) -> list[Any]:
        """Return it as JSON knows it."""
        return [self.modules, list(self.borrowed.items()), self.handed_out]

    @classmethod
    def from_json(cls, said: Any) -> ModuleOrder:
        """Return what `to_json` returned, in another process."""
        modules, borrowed, handed_out = said
        rows = {number: tuple(row) for number, row in borrowed}
        return cls(tuple(modules), rows, tuple(handed_out))

    def give(self, coordinator: Any, model: Any) -> bool:
        """Have an engine that is as new go by it; False: it has no such module or parameter."""
        modules = {int(one.ds_id): one for one in model.modules() if hasattr(one, "ds_id")}
        parameters = {int(one.ds_id): one for one in model.parameters()}
        used = {*self.handed_out, *(one for row in self.borrowed.values() for one in row)}
        if not (
            modules.keys() >= {*self.modules, *self.borrowed.keys()} and parameters.keys() >= used
        ):
            return False
        for number in self.handed_out:
            parameters[number].is_external_param = True
        for number, row in self.borrowed.items():
            modules[number]._external_params = {id(parameters[one]): parameters[one] for one in row}
        own = vars(coordinator)
        own[OWN + "trace_mode"] = ZeRoTraceMode.RECORD
        for number in self.modules:
            coordinator.record_module(modules[number])
            own[OWN + "step_id"] += 1
        coordinator.construct_parameter_trace_from_module_trace()
        for name in ("submodule_order", "param_order"):
            own[OWN + name] = tuple(own[OWN + name])
        own[OWN + "trace_mode"] = ZeRoTraceMode.COMPLETE
        # As `reset_step` leaves them between two iterations.
        own[OWN + "param_queue"] = deque(own[OWN + "param_order"])
        own[OWN + "most_recent_step_id_param_fetched_for"].clear()
        own[OWN + "step_id_module_fetched_for"].clear()
        own[OWN + "step_id"] = 0
        return True
