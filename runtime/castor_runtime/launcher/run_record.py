"""run.json: what the launcher says of its run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from castor_policy.agents.job_spec import JobSpec
from castor_records.run_record import RunRecord
from castor_runtime.launcher.train_options import TrainOptions


def run_record(
    spec: JobSpec,
    options: TrainOptions,
    *,
    store: str,
    store_version: str,
    agents: Mapping[str, int],
    generation: int,
    cluster: Mapping[str, Any] | None,
) -> RunRecord:
    """Return it.

    Args:
        spec: the job.
        options: of the run; this process is its launcher.
        store: its address.
        store_version: of etcd; "" unknown.
        agents: name -> process, of those that live.
        generation: of the newest plan.
        cluster: what the site says of itself.
    """
    return RunRecord(
        job=spec.job,
        run=spec.run,
        store=store,
        store_version=store_version,
        nodes=spec.machines,
        ranks_per_node=spec.ranks_per_machine,
        replicas=spec.replicas,
        pid=os.getpid(),
        standby=options.standby,
        launched_store=options.store,
        local_agents=options.local_agents,
        operator=options.operator,
        agents=dict(sorted(agents.items())),
        generation=generation,
        started_ns=spec.started_ns,
        cluster=cluster,
        spec=json.loads(spec.to_json()),
        command=tuple(options.command),
    )
