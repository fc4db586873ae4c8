"""An agent's own key in the store: whose it is, and whether this life's report stands there.

The key is the claim to the agent's name, and it lives by the claimant's lease. The rules:

1. Who finds no key makes it: of two agents of one name that come at once, one makes it.
2. A report is written over exactly that change of the key which its writer knows last. Nobody
   writes over another life's report, and a report that was given up cannot come late over a newer
   one: either is refused by the store, and what stands there is read before anything else is tried.
3. An earlier life's key is taken over, not deleted: nobody sees the agent gone that is back. That
   takes proof that the earlier life is dead; without it, its lease has to end first.
4. Who finds another life's report in a key that was its own has lost its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from castor_policy.agents.agent_report import AgentReport


@dataclass(frozen=True, slots=True)
class ReportWrite:
    """A report to be written.

    Attributes:
        report: it.
        after: revision of the change of the key that it is written over; 0: there is no key.
    """

    report: AgentReport
    after: int


class OwnReport:
    """The report that an agent wants in the store, and whether it stands there.

    The driver writes what is `wanted`, one write at a time, and says what came of it; a write
    whose answer is lost is repeated, and may have been carried out or be so later.
    """

    def __init__(self) -> None:
        self.desired: AgentReport | None = None
        self._there: AgentReport | None = None
        self._revision = 0
        self._lease: int | None = None
        self._spoilt = False
        self.in_question = False
        """The store lost its data: who holds the name there may be an earlier life, of a backup,
        whose lease ends by itself (`NameClaim`); no reason yet to give the name up."""
        self._dead: set[str] = set()

    @property
    def holder(self) -> AgentReport | None:
        """The report of another life that holds the name; None: nobody does, or this life."""
        ours = self.desired is not None and self._is_of(self.desired.incarnation)
        return None if ours else self._there

    @property
    def is_claimed(self) -> bool:
        """Whether this life's report stands in the key, as far as is known."""
        return self._there is not None and self.holder is None

    def bury(self, incarnation: str) -> None:
        """Take in that this life is proven dead: its key may be taken over."""
        self._dead.add(incarnation)

    def wanted(self, lease: int | None) -> ReportWrite | None:
        """Return what is to be written under `lease`.

        None if it stands there, without a lease, and while another life holds the name.
        """
        if lease is None or self.desired is None:
            return None
        if self._there == self.desired and self._lease == lease:
            return None
        holder = self.holder
        if holder is not None and holder.incarnation not in self._dead:
            return None
        is_there = self._there is not None or self._spoilt
        return ReportWrite(self.desired, self._revision if is_there else 0)

    def written(self, lease: int, write: ReportWrite, revision: int) -> None:
        """Take in that `write` was carried out under `lease`, at `revision`."""
        if revision >= self._revision:
            self._there, self._revision, self._lease = write.report, revision, lease
            self._spoilt = self.in_question = False

    def restart(self) -> None:
        """Begin anew with a store that lost its data: nothing is known of what it holds."""
        self._there, self._revision, self._lease, self._spoilt = None, 0, None, False
        self.in_question = True

    def known(self, report: AgentReport | None, revision: int, *, spoilt: bool = False) -> None:
        """Take in what stands in the key.

        Args:
            report: it; None if there is no key.
            revision: of its last change; of the read or the deletion that showed no key.
            spoilt: there is a key, but it holds no report that can be read: it is nobody's.
        """
        if revision > self._revision:
            # By which lease is not shown: what this life does not know to be its own is repeated.
            self._there, self._revision, self._lease = report, revision, None
            self._spoilt = spoilt

    def _is_of(self, incarnation: str) -> bool:
        return self._there is not None and self._there.incarnation == incarnation


class Sign(Enum):
    """What a new life of an agent knows of the one that holds its name."""

    DEAD = "dead"
    """Proven: its process is gone from this machine, which is the one that it ran on."""
    ALIVE = "alive"
    """Proven: its process runs, or its server answers."""
    UNKNOWN = "unknown"


class Verdict(Enum):
    """What the new life does."""

    TAKE = "take"
    WAIT = "wait"
    REFUSE = "refuse"


LEASES_WAITED = 2.0
EXPIRY_S = 2.0
"""A lease may be given its whole time again once unseen (a new leader of the store's), and a store
ends it somewhat later than it might. Who holds a name longer than that has renewed it."""


class NameClaim:
    """Whether a new life of an agent gets its name from the one that holds it.

    Args:
        lease_s: granted to this life, as it was to the earlier one.
    """

    def __init__(self, lease_s: float) -> None:
        self._patience_s = LEASES_WAITED * lease_s + EXPIRY_S
        self._since: tuple[str, float] | None = None

    def outage(self) -> None:
        """The store was away: once it is back, every lease has its whole time again."""
        self._since = None

    def decide(self, holder: AgentReport, sign: Sign, now_s: float) -> Verdict:
        """Say what to do about the life that holds the name at `now_s` (any steady clock)."""
        if sign is Sign.DEAD:
            return Verdict.TAKE
        if sign is Sign.ALIVE:
            return Verdict.REFUSE
        if self._since is None or self._since[0] != holder.incarnation:
            self._since = (holder.incarnation, now_s)
        return Verdict.WAIT if now_s - self._since[1] < self._patience_s else Verdict.REFUSE
