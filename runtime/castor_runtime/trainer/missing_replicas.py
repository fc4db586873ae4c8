"""Whether a trainer may write checkpoints into its machine's replicas while some are still missing.

After a loss the agent fetches what belongs on its machine, and trainers begin as soon as their own
parts are there. Where the job's `redundancy` is "wait", the first checkpoint waits for the rest.
Where it is "degraded", it is taken beside the fetch, into the other buffer of each replica; once it
is complete on every rank the agent gives up what it still fetches, and no later one begins before.
"""

from __future__ import annotations

from typing import Protocol

from castor_policy.job_options import DEGRADED


class FetchStatus(Protocol):
    """What the agent has told of its fetches; see `AgentLink`."""

    @property
    def is_redundant(self) -> bool:
        """Nothing is fetched any more."""

    def wait_redundant(self) -> None:
        """Return when nothing is."""


class MissingReplicas:
    """What the agent of one trainer may still be fetching.

    Args:
        redundancy: of the job; see `RecoveryOptions`.
        loaded: the iteration that is fetched: what was loaded from memory; None: nothing was.
        agent: tells how far it is.
    """

    def __init__(self, redundancy: str, loaded: int | None, agent: FetchStatus) -> None:
        self._degraded = redundancy == DEGRADED and loaded is not None
        self._loaded = loaded
        self._agent = agent
        self._settled = False

    def wait(self, agreed: int | None) -> bool:
        """Return when replicas may be written, and whether `agreed` may be fetched meanwhile.

        Args:
            agreed: the newest iteration that is complete on every rank.

        Raises:
            AgentLostError: the agent is gone.
        """
        if self._settled:
            return False
        if self._degraded and agreed == self._loaded and not self._agent.is_redundant:
            return True
        self._agent.wait_redundant()
        self._settled = True
        return False
