"""run.json: which run a folder is of, as the launcher writes it and others read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from castor_records.checked import checked

SCHEMA: Final = 1
"""Goes up when a key changes its meaning or disappears, not when one is added."""

_NULLABLE: Final[Mapping[str, type]] = {"cluster": dict, "spec": dict}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What run this is, and what runs where. What is missing has its default.

    Attributes:
        job: its name.
        run: which run of that name.
        store: its address.
        store_version: of etcd; "" unknown.
        nodes: machines that train.
        ranks_per_node: trainers on each.
        replicas: row i names the machines that hold shard i, machine i first.
        pid: the launcher's process.
        standby: machines that wait to replace one.
        launched_store: the store as it was asked for: `embedded`, or an address.
        local_agents: the launcher started the agents; else somebody else does.
        operator: URL of who brings machines that external agents ask for; "": nobody.
        agents: process of each agent that lives here, by its name.
        generation: of the newest plan.
        started_ns: CLOCK_REALTIME when the job was made, from which logs count.
        cluster: what the emulated cluster says of itself; null: there is none.
        spec: the job as the store has it; null: it was not known yet.
        command: that started it.
    """

    job: str = ""
    run: str = ""
    store: str = ""
    store_version: str = ""
    nodes: int = 0
    ranks_per_node: int = 0
    replicas: tuple[tuple[int, ...], ...] = ()
    pid: int = 0
    standby: int = 0
    launched_store: str = "embedded"
    local_agents: bool = True
    operator: str = ""
    agents: Mapping[str, int] = field(default_factory=dict)
    generation: int = 0
    started_ns: int = 0
    cluster: Mapping[str, Any] | None = None
    spec: Mapping[str, Any] | None = None
    command: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the document."""
        return {"schema": SCHEMA} | {one.name: getattr(self, one.name) for one in fields(self)}

    @classmethod
    def of_json(cls, document: Mapping[str, Any]) -> RunRecord:
        """Read the document; keys that this version does not know are left.

        Raises:
            ValueError: naming the key whose value is none of its kind, or a later schema.
        """
        # What was written before there was a schema had these keys, too.
        if (schema := document.get("schema", SCHEMA)) != SCHEMA:
            raise ValueError(f"schema: {schema!r}; this version of Castor reads {SCHEMA}")
        found = checked(document, cls(), _NULLABLE)
        found["replicas"] = tuple(tuple(row) for row in found.get("replicas", ()))
        return cls(**found)
