"""How one agent is started; what the job is stands in the store (`JobSpec`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """Arguments of `castor agent`.

    Attributes:
        name: unique in the job.
        job: the job to join.
        store: etcd://host:port[,host:port...].
        folder: where logs, `agent.json` and `events.jsonl` of this agent go.
        standby: fill a machine only when one is lost.
        domain: what its machine fails with, by name: a rack, a switch; "": unknown.
        listen: address to bind the checkpoint server to; peers must reach it.
        ports: FIRST-LAST: those that it, and its trainers' rendezvous, may listen at; "": any.
        secret: file with the job's secret, unless TLS files are given.
        tls_ca: certificate authority of all agents.
        tls_certificate: of this agent.
        tls_key: of this agent.
        allow_changed_script: its script may differ from the job's; see `agent.admission`.
        wait_s: how long to wait for the job to appear in the store.
        metrics_port: where Prometheus asks, at `listen`; 0: any free one, None: nowhere.
        drain_on_term_s: SIGTERM has this machine drained, for so long at most; 0: it ends at once.
        under_launcher: a launcher on this machine has started it, and it ends with that; else
            somebody may start it again after its death, and its memory waits for that.
    """

    name: str
    job: str
    store: str
    folder: Path
    standby: bool = False
    domain: str = ""
    listen: str = "127.0.0.1"
    ports: str = ""
    secret: Path | None = None
    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    allow_changed_script: bool = False
    wait_s: float = 60.0
    metrics_port: int | None = None
    drain_on_term_s: float = 0.0
    under_launcher: bool = False
