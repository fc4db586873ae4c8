"""How a failure is found out in an experiment: as by Gemini's artifact, or as by Castor itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from castor_configs.quantities import Nanoseconds
from castor_configs.schema import ConfigModel, CountOrZero
from castor_policy.membership import (
    EXIT_S,
    NS_PER_S,
    UNREACHED_S,
    Heartbeats,
    Lease,
    check_lease,
)
from castor_sim.strategy_costs import MAX_PHASE_NS
from castor_sim.tally import Operations

_ARTIFACT = {"heartbeat": "3s", "poll": "5s", "misses": 3}
"""Gemini's artifact, where nothing is said."""


class DetectionConfig(ConfigModel):
    """How a failure is found out; by default as in Gemini's artifact: 3 s, 5 s, 3 misses."""

    heartbeat: Annotated[Nanoseconds, Field(gt=0)] | None = None
    """Between two heartbeats of a machine; by default 3 s."""
    poll: Annotated[Nanoseconds, Field(gt=0)] | None = None
    """Between two looks of the root's; by default 5 s."""
    misses: Annotated[CountOrZero, Field(le=1_000_000)] | None = None
    """Polls in a row without a new heartbeat, by default 3; 0: a failure is known at once."""
    process_exit: Annotated[Nanoseconds, Field(le=MAX_PHASE_NS)] | None = None
    """From a software failure until it is known, where an agent on each machine sees its
    processes exit; by default nobody does, and it is found out as a lost machine is. With a
    `lease` there are agents, and the default is what was measured of them, 50 ms."""
    unreached: Annotated[Nanoseconds, Field(le=MAX_PHASE_NS)] | None = None
    """From the loss of a machine until those around it tell, where a standby can take its place; by
    default nobody does. With a `lease` there are agents, and the default is 0.94 s: a host that
    falls silent, as `castor train --unreached` has it."""
    lease: Nanoseconds | None = None
    """Castor's own detection, in place of `heartbeat`, `poll` and `misses`: an agent on each
    machine renews a lease of this length, as `castor train --lease` has it."""

    @model_validator(mode="before")
    @classmethod
    def _one_or_the_other(cls, table: object) -> object:
        if not isinstance(table, dict):
            return table
        if table.get("lease") is None:
            return {**_ARTIFACT, **table}
        given = [name for name in _ARTIFACT if table.get(name) is not None]
        if given:
            raise ValueError(
                f"`lease` takes the place of heartbeats: leave {' and '.join(given)} out, or the "
                "lease (--set 'detection={lease=\"5s\"}' replaces the whole table)"
            )
        return table

    @model_validator(mode="after")
    def _no_false_alarm(self) -> DetectionConfig:
        if self.lease is not None:
            try:
                check_lease(self.lease / NS_PER_S)
            except ValueError as error:
                raise ValueError(f"`lease`: {error}") from error
            return self
        heartbeat_ns, poll_ns, misses = self.heartbeats()
        if misses and misses * poll_ns <= heartbeat_ns:
            raise ValueError(
                f"{misses} misses of {poll_ns / 1e9:g} s do not span a heartbeat of "
                f"{heartbeat_ns / 1e9:g} s: live machines would be taken for dead"
            )
        if misses * poll_ns > MAX_PHASE_NS:
            raise ValueError("`misses` times `poll` is 10 years at most")
        return self

    def heartbeats(self) -> Heartbeats:
        """Return the figures by which a lost machine is noticed."""
        if self.lease is not None:
            return Lease(self.lease / NS_PER_S).heartbeats()
        assert self.heartbeat is not None, "the artifact's stands where none is given"
        assert self.poll is not None, "likewise"
        assert self.misses is not None, "likewise"
        return Heartbeats(self.heartbeat, self.poll, self.misses)

    @property
    def typical_ns(self) -> int:
        """Typical time from the loss of a machine until it is known."""
        _, poll_ns, misses = self.heartbeats()
        return misses * poll_ns

    def watched(self, operations: Operations) -> Operations:
        """Return `operations` with this detection."""
        exit_ns = self.process_exit
        if exit_ns is None:
            exit_ns = -1 if self.lease is None else round(EXIT_S * NS_PER_S)
        unreached_ns = self.unreached
        if unreached_ns is None:
            unreached_ns = -1 if self.lease is None else round(UNREACHED_S * NS_PER_S)
        return operations._replace(
            **self.heartbeats()._asdict(), exit_ns=exit_ns, unreached_ns=unreached_ns
        )
