"""How an agent keeps its lease: what it asks the store for next, and what each answer means.

1. A new lease counts only after everything was read that the store held after its grant: what was
   planned while there was no lease is told before anything is said under the new one.
2. A lease lasts from when its grant or its renewal was *sent*: the store counts from when it came
   there, so that the agent never believes in a lease that the store has ended.
3. A store that does not answer ends no lease: the same one is renewed again. Only the store's word
   that it is gone does, and a new one is asked for at once.
4. A store that lost data may still know the lease, from before: a fresh one is taken, so that the
   keys that it holds are this store's own; the old one is `retired`, to be revoked once the report
   stands under the new one, so that nobody takes the agent for gone meanwhile. Nothing is written
   under the old one any more: a root's key that were would end its term as soon as it is revoked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from castor_policy.agents.events import (
    SessionLost,
    SessionOpened,
    SessionRenewed,
    StoreLost,
    StoreTrouble,
    WorkerEvent,
)
from castor_policy.agents.job_spec import JobSpec
from castor_policy.agents.store_view import StoreView
from castor_policy.membership import Lease
from castor_policy.store import (
    HistoryLostError,
    LeaseLostError,
    StoreFullError,
    StoreUnavailableError,
)

RETRY_S = 0.2
"""A request that was not answered is repeated after so long."""


@dataclass(frozen=True, slots=True)
class GrantLease:
    """Ask for a lease of `ttl_s` seconds, after `wait_s`."""

    wait_s: float
    ttl_s: float


@dataclass(frozen=True, slots=True)
class ReadAll:
    """Read every key of the job into the view, after `wait_s`."""

    wait_s: float


@dataclass(frozen=True, slots=True)
class RenewLease:
    """Keep `lease` alive, after `wait_s`."""

    wait_s: float
    lease: int


LeaseStep: TypeAlias = GrantLease | ReadAll | RenewLease


class LeaseKeeper:
    """The lease of one life of an agent.

    The driver carries out `step`, says when it is `sent` and what was `answered`, and goes on with
    the next one, for ever.

    Args:
        spec: the job.
        view: what this life has seen of the store.

    Attributes:
        step: what to do next.
        held: the lease that it has, be it of the store as it was before it lost data.
        retired: a lease that is to be revoked once the report stands under `lease`; or None.
    """

    def __init__(self, spec: JobSpec, view: StoreView) -> None:
        self.held: int | None = None
        self.retired: int | None = None
        self.step: LeaseStep = GrantLease(0.0, spec.limits.lease_s)
        self._spec = spec
        self._view = view
        self._granted = 0
        self._sent_s = 0.0
        self._granted_s = 0.0
        self._epoch = view.epoch

    @property
    def lease(self) -> int | None:
        """The lease that the agent's keys are written under; None while it has none of this store.

        Be it that the store has lost data since it was granted (rule 4).
        """
        return self.held if self._epoch == self._view.epoch else None

    def sent(self, now_s: float) -> None:
        """Take in that `step` is sent now, by the driver's clock."""
        self._sent_s = now_s

    def answered(
        self, answer: float | LeaseLostError | StoreUnavailableError | None
    ) -> list[WorkerEvent]:
        """Take in what came of `step`; return what the worker is to be told.

        Args:
            answer: the lease that was granted, the seconds it was renewed for, None for a read, or
                the error. What a read showed is told before.
        """
        if isinstance(answer, StoreUnavailableError):
            self._view.unanswered()
            self.step = (
                RenewLease(RETRY_S, self.step.lease)
                if isinstance(self.step, RenewLease)
                else GrantLease(RETRY_S, self._spec.limits.lease_s)
            )
            return unanswered(answer)
        match self.step, answer:
            case _, LeaseLostError():
                self.held = None
                self.step = GrantLease(0.0, self._spec.limits.lease_s)
                return [SessionLost()]
            case GrantLease(), int(lease):
                self._granted, self._granted_s = lease, self._sent_s
                self.step = ReadAll(0.0)
                return []
            case ReadAll(), _:
                self.retired, self.held = self.held, self._granted
                self._epoch = self._view.epoch
                self.step = RenewLease(0.0, self._granted)
                return [SessionOpened(self._view.plan()[0], self._granted_s)]
            case _ if self._view.epoch != self._epoch:
                self.step = GrantLease(0.0, self._spec.limits.lease_s)
                return [SessionRenewed(self._sent_s)]
            case _:
                self.step = RenewLease(
                    Lease(self._spec.limits.lease_s).renewed_every_s, self._granted
                )
                return [SessionRenewed(self._sent_s)]


def unanswered(error: StoreUnavailableError) -> list[WorkerEvent]:
    """Return what the worker is told of a request that the store did not carry out."""
    if isinstance(error, StoreFullError):
        reason = f"the store takes no writes until it has room: {error}"
        return [StoreTrouble("space", reason)]
    if isinstance(error, HistoryLostError):
        return [StoreTrouble("history", f"all is read again: {error}")]
    return [StoreLost()]
