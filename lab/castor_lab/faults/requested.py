"""What shall fail in a run, as it was asked for: checked before anything is started."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from castor_configs.errors import InputError
from castor_lab.faults.fault import Fault, FaultKind, parse_fault
from castor_lab.faults.schedule import faults_of_trace
from castor_policy.agents.job_spec import JobSpec
from castor_runtime.launcher.train_options import EMBEDDED

if TYPE_CHECKING:
    from castor_traces.trace import Trace


def requested_faults(
    specs: Sequence[str],
    trace: Trace | None,
    speedup: float,
    spec: JobSpec,
    store: str,
    cluster: str = "",
) -> tuple[Fault, ...]:
    """Read what shall fail: each SPEC of --kill, then the failures of a trace.

    Raises:
        InputError: a SPEC that is none, or a fault that this run cannot have.
    """
    found = [
        parse_fault(text, machines=spec.machines, ranks_per_machine=spec.ranks_per_machine)
        for text in specs
    ]
    if store != EMBEDDED and any(fault.needs_own_store for fault in found):
        raise InputError("only --store embedded can be killed from here", key="--kill")
    if not spec.persistence.tiers and any(fault.needs_storage for fault in found):
        raise InputError("there is no persistent storage: give --persist FOLDER", key="--kill")
    if cluster and any(fault.kind in (FaultKind.TWIN, FaultKind.STRANGER) for fault in found):
        raise InputError("twin and stranger work without an emulated cluster only", key="--kill")
    if not cluster and any(fault.of_link for fault in found):
        raise InputError("only an emulated cluster has links: give --cluster NAME", key="--kill")
    if trace is not None:
        try:
            found += faults_of_trace(trace, speedup, spec.machines, spec.ranks_per_machine)
        except ValueError as error:
            raise InputError(str(error), key="--speedup") from error
    return tuple(found)
