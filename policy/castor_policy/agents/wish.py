"""What a job's user asks of it while it runs, as a document in the store that its root acts on.

Whoever is root reads it there, so that no change of the root loses it. It stands until what it asks
for is done, or the user takes it back.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from castor_policy.agents.documents import Document
from castor_policy.agents.store_keys import wishes_prefix


class WishKind(StrEnum):
    """What is asked for."""

    STOP = "stop"
    """End the job now."""
    CHECKPOINT = "checkpoint"
    """End it at an iteration that lies in the persistent tier."""
    DRAIN = "drain"
    """Give a machine's place to a standby, with nothing lost."""


@dataclass(frozen=True, slots=True)
class Wish(Document):
    """One thing that is asked for.

    Attributes:
        kind: see `WishKind`.
        agent: whose machine is to be drained; "" for the others.
        incarnation: the life of it that is meant: a later one has come to stay.
        since_ns: CLOCK_REALTIME when it was asked for.
    """

    kind: str
    agent: str = ""
    incarnation: str = ""
    since_ns: int = 0

    @property
    def life(self) -> tuple[str, str]:
        """The life of an agent that is to be drained."""
        return self.agent, self.incarnation

    def key(self, job: str) -> str:
        """Return where it stands: one key to end the job, and one for each agent to drain."""
        name = f"drain/{self.agent}" if self.kind == WishKind.DRAIN else "stop"
        return wishes_prefix(job) + name

    @classmethod
    def _restored(cls, record: dict[str, Any]) -> dict[str, Any]:
        WishKind(record["kind"])
        return record
