"""result.json: everything that a real run came to, as the launcher writes it and others read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from castor_records.checked import checked
from castor_records.recoveries import Recovery

_NULLABLE: Final[Mapping[str, type]] = {
    "compute": str,
    "cluster": dict,
    "spec": dict,
    "final_state_sha256": str,
    "kept_memory": dict,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run came to. Earlier versions wrote less: what is missing has its default.

    Attributes:
        job: its name.
        run: which run of that name.
        outcome: "finished", "failed", "refused" (bad input), "stopped" (`castor stop`) or
            "interrupted".
        reason: why, where it did not finish.
        command: that started it.
        seeds: the script's options that speak of seeds, and their values.
        versions: of Castor, Python and the packages that train.
        machine: system, processor, cores and memory of the launcher's machine.
        compute: "paced" if waits stand for a GPU's work, else "real".
        cluster: the emulated cluster's links as they were when the run began; None: there is none.
        nodes: machines.
        ranks_per_node: trainers on each.
        replicas: row i names the machines that hold shard i, machine i first.
        spec: the job as the store has it.
        iterations: the newest that ended.
        wall_s: from the start of the run to its end.
        final_state_sha256: over all ranks; None: not every rank came to its end.
        recoveries: in order.
        persistent: "newest" iteration in persistent storage, and the shares that "failures" names.
        warnings: each once: "time_s", "message", and the "ranks" of the trainers that gave it.
        faults_not_injected: as they were asked for.
        kept_memory: checkpoint memory that is kept of a run that can go on.
        strangers: exit codes of agents that faults have started beside the run's own.
    """

    job: str = ""
    run: str = ""
    outcome: str = ""
    reason: str = ""
    command: tuple[str, ...] = ()
    seeds: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    compute: str | None = None
    cluster: Mapping[str, Any] | None = None
    nodes: int = 0
    ranks_per_node: int = 0
    replicas: tuple[tuple[int, ...], ...] = ()
    spec: Mapping[str, Any] | None = None
    iterations: int = 0
    wall_s: float = 0.0
    final_state_sha256: str | None = None
    recoveries: tuple[Recovery, ...] = ()
    persistent: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[Mapping[str, Any], ...] = ()
    faults_not_injected: tuple[str, ...] = ()
    kept_memory: Mapping[str, Any] | None = None
    strangers: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the document."""
        document = {one.name: getattr(self, one.name) for one in fields(self)}
        return document | {"recoveries": [one.to_json() for one in self.recoveries]}

    @classmethod
    def of_json(cls, document: Mapping[str, Any]) -> Result:
        """Read the document; keys that this version does not know are left.

        Raises:
            ValueError: naming the key whose value is none of its kind.
        """
        found = checked(document, cls(), _NULLABLE)
        found["replicas"] = tuple(tuple(row) for row in found.get("replicas", ()))
        found["recoveries"] = tuple(map(Recovery.of_json, found.get("recoveries", ())))
        return cls(**found)
