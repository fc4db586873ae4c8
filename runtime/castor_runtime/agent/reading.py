"""Reads an agent for its metrics, in its event loop: a few fields, and two headers a part."""

from __future__ import annotations

import time

from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.life import AgentLife
from castor_policy.version import __version__
from castor_runtime.agent.memory import CheckpointMemory
from castor_runtime.agent.options import AgentOptions
from castor_runtime.metrics import Readings


def read_agent(
    options: AgentOptions,
    spec: JobSpec,
    memory: CheckpointMemory,
    life: AgentLife | None,
    *,
    claimed: bool,
) -> Readings:
    """Read it.

    Args:
        options: of the agent.
        spec: its job.
        memory: its checkpoint memory.
        life: its worker and root; None before they are made.
        claimed: its name is its own.
    """
    worker = life.worker if life is not None else None
    machine = worker.machine if worker is not None else None
    held = memory.holdings()
    belong = spec.ranks_held_by(machine) if machine is not None else []
    return Readings(
        at_s=time.monotonic(),
        version=__version__,
        address=worker.report.address if worker is not None else "",
        domain=options.domain,
        plan=worker.plan if worker is not None else None,
        report=worker.report if worker is not None and claimed else None,
        machine=machine,
        is_root=life is not None and life.root is not None,
        memory_bytes=memory.memory_bytes,
        limit_bytes=spec.memory.limit_bytes,
        part_bytes={rank: memory.replica(rank).part.data_bytes for rank in held},
        missing=tuple(rank for rank in belong if not held.get(rank)),
    )
