"""An agent's contact with the store and, while the store is silent, with its peers.

1. The lease counts from the request that renewed it, by the driver's clock.
2. What happens to the store is logged once, however often it is met, and so is its end.
3. An agent stands for root in a session alone, while nobody is root; one that trains does so at
   once, a standby only after `STANDBY_CAMPAIGN_S`.
4. It is cut off once its lease must have expired and no peer has answered for half a lease. Who was
   not asked is not silent: that is counted from when this agent has begun to ask.
"""

from __future__ import annotations

from castor_policy.agents.effects import Log
from castor_records.events.storing import StoreBack, StoreLost, StoreTrouble

STANDBY_CAMPAIGN_S = 1.0
"""A machine that trains is preferred as root; a standby stands only when none has for so long."""

PING_EVERY_S = 0.5
"""While the store is silent, peers are asked so often for the plan that they know."""


class StoreContact:
    """What one life of an agent has heard of the store and of its peers, and when.

    Args:
        agent: its name.
        lease_s: of the job.
        now_s: the driver's clock.

    Attributes:
        renewed_s: from when on, by the driver's clock, it counts the lease that it has.
        in_session: it has a lease, as far as it knows.
        is_silent: the store does not answer.
    """

    def __init__(self, agent: str, lease_s: float, now_s: float) -> None:
        self.renewed_s = now_s
        self.in_session = False
        self.is_silent = False
        self._agent = agent
        self._lease_s = lease_s
        self._troubles: dict[str, str] = {}
        self._peers_answered_s = now_s
        self._pinged_s = now_s
        self._asking_since_s: float | None = None
        self._rootless_since_s: float | None = None

    def renewed(self, sent_s: float) -> list[Log]:
        """Take in that a request that was sent at `sent_s` has renewed the lease."""
        self.renewed_s = max(self.renewed_s, sent_s)
        if not self.is_silent:
            return []
        self.is_silent = False
        return [Log(StoreBack(agent=self._agent))]

    def lost(self) -> list[Log]:
        """Take in that the store does not answer."""
        if self.is_silent:
            return []
        self.is_silent = True
        self._asking_since_s = None
        return [Log(StoreLost(agent=self._agent))]

    def trouble(self, about: str, reason: str) -> list[Log]:
        """Take in what cannot be used in the store; no reason: it can be again."""
        if self._troubles.get(about, "") == reason:
            return []
        if reason:
            self._troubles[about] = reason
        else:
            del self._troubles[about]
        return [Log(StoreTrouble(agent=self._agent, about=about, reason=reason))]

    def root_changed(self, root: str, now_s: float) -> None:
        """Take in who is root; "": nobody."""
        self._rootless_since_s = None if root else now_s

    def may_stand(self, now_s: float, *, trains: bool) -> bool:
        """Whether this agent may stand for root now."""
        if self._rootless_since_s is None or not self.in_session or self.is_silent:
            return False
        return trains or now_s - self._rootless_since_s >= STANDBY_CAMPAIGN_S

    def peers_answered(self, now_s: float) -> None:
        """Take in that a peer has answered."""
        self._peers_answered_s = now_s

    def ask_anew(self) -> None:
        """Count the silence of peers from the next look on: there are other peers now."""
        self._asking_since_s = None

    def is_cut_off(self, now_s: float) -> bool:
        """Whether neither the store nor a peer has answered for too long; the store is silent."""
        if self._asking_since_s is None:
            # Who was not asked is not silent: this machine was paused, or the plan has just come.
            self._asking_since_s = now_s
        heard_s = max(self._peers_answered_s, self._asking_since_s)
        expired = now_s - self.renewed_s >= self._lease_s
        unheard = now_s - heard_s >= self._lease_s / 2
        return expired and unheard

    def is_ping_due(self, now_s: float) -> bool:
        """Whether peers are to be asked now; they are, then."""
        if now_s - self._pinged_s < PING_EVERY_S:
            return False
        self._pinged_s = now_s
        return True
