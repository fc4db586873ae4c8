"""Who is alive: what fails, who sees it, and after how long.

    what fails                        who sees it            after
    a machine, or its agent           those around it        at once where its host says so, else
                                                             `unreached_s`; if another takes its
                                                             place (`agents.neighbours`)
    the same, nobody to take it       the store, its lease   `Lease`: low_s to high_s
    a trainer: it ends                its agent              `EXIT_S`, as the root knows it
    a trainer: its process is still   its agent              `WatchLimits.hang_s`
    all trainers: nothing goes on     the agents; the root   `stall_factor` iterations, `stall_s` or
                                      compares them          more; `startup_s` at the start

The runtime renews leases and watches trainers by these figures, the simulator detects by them, and
what is predicted for a run comes from them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from castor_policy.option import Options, Unit, option, options_of

NS_PER_S = 1_000_000_000

RENEWALS = 4
"""A lease is renewed so many times in its length."""

EXPIRY_S = 0.5
"""etcd looks for expired leases so often."""

ROUND_TRIP_NS = 3_000_000
"""Of a renewal: the period is a quarter of the lease and this, so that it drifts along etcd's."""

EXIT_S = 0.05
"""From a trainer's end until the root knows of it, what its own agent saw at once.

Measured on one machine: 32 ms in the median, 58 ms at most (docs/results/recovery.md, d).
"""

SHORTEST_UNREACHED_S = 0.4

BEATS = 4
"""Neighbours hear of each other so many times in the time after which one is lost."""

SHORTEST_LEASE_S = 1.0
LONGEST_LEASE_S = 600.0

SHORTEST_LIMIT_S = 0.5
"""Trainers are watched no more closely than this."""


class Heartbeats(NamedTuple):
    """How a machine's silence is noticed, as `detection_ns` takes it.

    Attributes:
        heartbeat_ns: a live machine is heard of so often.
        poll_ns: it is looked for so often.
        misses: looks in a row without news that make it dead; 0: it is known at once.
    """

    heartbeat_ns: int
    poll_ns: int
    misses: int


@dataclass(frozen=True, slots=True)
class Lease:
    """The lease that an agent's keys live by: a machine that does not renew it is lost.

    It was renewed last a time before the failure that is uniform in a renewal's period, and etcd
    finds it expired at a moment that is uniform in its own: the lease less U(0, lease/4) plus
    U(0, 0.5 s), a trapezium.

    Attributes:
        length_s: as asked for.
    """

    length_s: float

    @property
    def renewed_every_s(self) -> float:
        """Its holder renews it so often."""
        return self.length_s / RENEWALS

    @property
    def stored_s(self) -> float:
        """What etcd makes of it: whole seconds, rounded up."""
        return float(math.ceil(self.length_s))

    @property
    def low_s(self) -> float:
        """A lost machine is known no sooner than this."""
        return self.stored_s - self.renewed_every_s

    @property
    def high_s(self) -> float:
        """No later than this."""
        return self.stored_s + EXPIRY_S

    @property
    def mean_s(self) -> float:
        """The mean, which is the median too: the distribution is symmetric."""
        return (self.low_s + self.high_s) / 2

    @property
    def deviation_s(self) -> float:
        """The standard deviation."""
        return math.hypot(self.renewed_every_s, EXPIRY_S) / math.sqrt(12)

    def heartbeats(self) -> Heartbeats:
        """Return the figures with which `detection_ns` detects as this lease does."""
        return Heartbeats(
            heartbeat_ns=round(self.renewed_every_s * NS_PER_S) + ROUND_TRIP_NS,
            poll_ns=round(EXPIRY_S * NS_PER_S),
            misses=round(self.stored_s / EXPIRY_S),
        )


def check_lease(lease_s: float) -> None:
    """Raise ValueError for a lease that no store gives, or that nobody wants to wait for."""
    options_of(WatchLimits)["lease_s"].check(lease_s)


_LOADED = "a loaded machine is silent for as long"


@dataclass(frozen=True, slots=True)
class WatchLimits(Options):
    """How long a job is silent before its agents hold something for failed; the defaults.

    Attributes:
        lease_s: an agent that has not renewed for so long is dead; see `Lease`.
        unreached_s: an agent that its neighbours cannot reach for so long is dead, if another can
            take its place (`agents.neighbours`); 0: only its lease says so.
        hang_s: a trainer whose process stood still, or was stopped, for so long is hung.
        stall_factor: no sign of life for so many times the median iteration is a stall,
        stall_s: but never sooner than this, for evaluations and the user's own checkpoints.
        startup_s: patience with the start of a generation, which imports, loads and compiles.
        slow_share: a rank is slow where all wait for it for this share of an iteration; 0: none is,
        slow_looks: in so many looks in a row (`slow_ranks`).
    """

    lease_s: float = option(
        5.0,
        Unit.SECONDS,
        "A machine silent for so long is lost.",
        least=SHORTEST_LEASE_S,
        most=LONGEST_LEASE_S,
        why="etcd's leases are no shorter",
    )
    unreached_s: float = option(
        0.75,
        Unit.SECONDS,
        "A machine that its neighbours cannot reach for so long is lost, if another can take its "
        "place; 0: only its lease counts.",
        least=SHORTEST_UNREACHED_S,
        empty=True,
        why="a packet that is lost is sent again after 0.2 s",
    )
    hang_s: float = option(
        0.8,
        Unit.SECONDS,
        "A trainer whose process stands still so long is hung.",
        least=SHORTEST_LIMIT_S,
        why=_LOADED,
    )
    stall_factor: float = option(
        10.0,
        Unit.RATIO,
        "No sign of life for so many median iterations, on any rank, is a stall.",
        least=1,
    )
    stall_s: float = option(
        300.0,
        Unit.SECONDS,
        "No sign of life for so long, on any rank, is a stall.",
        least=SHORTEST_LIMIT_S,
        why=_LOADED,
    )
    startup_s: float = option(
        1800.0,
        Unit.SECONDS,
        "Trainers may import, load and compile for so long.",
        least=SHORTEST_LIMIT_S,
        why=_LOADED,
    )
    slow_share: float = option(
        0.2,
        Unit.SHARE,
        "A rank that all others wait for, for this share of each iteration, is named as slow; "
        "0: none is.",
        above=0,
        most=1,
        empty=True,
    )
    slow_looks: int = option(
        10,
        Unit.COUNT,
        "It is named after so many looks in a row, each of an iteration or a second, whichever is "
        "longer.",
        metavar="N",
        least=1,
    )


LIMITS = WatchLimits()

UNREACHED_S = LIMITS.unreached_s * (1 + 1 / BEATS)
"""From the loss of a machine until those around it tell: a beat, and then silence.

That is a host which loses its power or its cable. Where only its processes die, as in an emulated
cluster, its kernel says so at once: 0.1 to 0.2 s (docs/recovery.md).
"""


def detection_ns(failure_ns: int, heartbeat_ns: int, poll_ns: int, misses: int) -> int:
    """Return the time at which the root takes a machine that failed at `failure_ns` for dead.

    Machines write a heartbeat at every multiple of `heartbeat_ns`; the root looks at every
    multiple of `poll_ns`. A poll misses a machine when no heartbeat fell into the time since the
    poll before, and `misses` misses in a row make it dead (docs/paper.md, the artifact: 3 s, 5 s,
    3 misses: the paper's 15 s, and up to 5 s more from where in a period the failure falls).

    Heartbeats have to come more often than `misses` polls, or live machines are taken for dead:
    `misses * poll_ns > heartbeat_ns` is the caller's to see to. `misses` = 0 stands for a
    detector that needs no time. The result never decreases with `failure_ns`. Written in the
    subset of Python that the sweep engine compiles as it stands.
    """
    if misses == 0:
        return failure_ns
    last_heartbeat_ns = failure_ns // heartbeat_ns * heartbeat_ns
    first_poll_ns = -(-last_heartbeat_ns // poll_ns) * poll_ns
    return max(failure_ns, first_poll_ns + misses * poll_ns)


def known_ns(
    failure_ns: int,
    hardware: int,
    heartbeat_ns: int,
    poll_ns: int,
    misses: int,
    exit_ns: int,
    unreached_ns: int,
    has_standby: bool,
) -> int:
    """Return when a failure at `failure_ns` is known: a lost machine if `hardware`, else a process.

    An agent sees the end of its machine's processes, and it is known `exit_ns` later; those around
    a lost machine tell it `unreached_ns` later, if a standby can take its place. -1: nobody does,
    so that it is found out by its silence (`detection_ns`). Written in the subset of Python that
    the sweep engine compiles as it stands.
    """
    if not hardware and exit_ns >= 0:
        return failure_ns + exit_ns
    silent_ns = detection_ns(failure_ns, heartbeat_ns, poll_ns, misses)
    if hardware and has_standby and unreached_ns >= 0:
        return min(silent_ns, failure_ns + unreached_ns)
    return silent_ns
