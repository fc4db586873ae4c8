"""What a simulated run came to: integers, so that the parts sum to the whole exactly."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

from castor_policy.recovery import TIERS

SOFTWARE = 0
HARDWARE = 1

PENDING = len(TIERS)
"""Beside the tiers' codes: the run ended before every rank had its shard."""

SOURCE_NAMES = (*map(str, TIERS), "pending")

WASTE_KINDS = (
    "slow",
    "lost_progress",
    "checkpoint_stall",
    "detection",
    "serialisation",
    "replacement_wait",
    "retrieval",
    "warm_up",
)
"""The kinds of wasted time; after slow training in the order in which failures bring them about."""


class Operations(NamedTuple):
    """How the cluster is operated; times in ns. A named tuple of integers, for numba.

    Attributes:
        positions: machines that the job needs (N).
        fleet: 0: machines come from a cloud provider, and a failure names a position of the job.
            Otherwise the number of physical machines: a failure names a machine, which returns
            after its repair, and the fleet's spare machines are the standbys.
        standbys: cloud only: machines kept ready beyond the job's own.
        dedicated: cloud only: 1: a failure that finds no standby waits for a machine requested
            for it alone; 0: for whichever requested machine comes first.
        activation_ns: from detection until a standby has taken over the rank.
        heartbeat_ns, poll_ns, misses, exit_ns, unreached_ns: see
            `castor_policy.membership.known_ns`.
    """

    positions: int
    fleet: int = 0
    standbys: int = 0
    dedicated: int = 0
    activation_ns: int = 0
    heartbeat_ns: int = 0
    poll_ns: int = 0
    misses: int = 0
    exit_ns: int = -1
    unreached_ns: int = -1


@dataclass(slots=True)
class Tally:
    """The integers that every engine must agree on.

    Times in ns. `useful_ns` is the training time of the iterations that were kept (an iteration
    cut off by the end of the run counts as far as it came); the other times are wasted, and all
    of them sum to `wall_ns`. `recovered_*` count failures by what their recovery loaded from:
    a recovery from memory counts its software failures as `own_memory`, its lost machines as
    `peer`; one from storage counts all of its failures as `storage`.

    `slow_ns` is what slow machines and links have added to training, thrown away or not;
    `set_aside` counts machines that were replaced for it, each as a lost one in `recovered_*`;
    `corruptions` silent errors that were seen, each as a software failure there.

    A failure is booked when every rank has its shard. `spare_failures` hit machines that did not
    work for the job; `standby_empty` counts lost machines for which no standby was ready.
    `recoveries` counts resumptions of training, `recoveries_in_place` those that restarted only the
    trainers that were lost.
    """

    wall_ns: int = 0
    useful_ns: int = 0
    slow_ns: int = 0
    lost_progress_ns: int = 0
    checkpoint_stall_ns: int = 0
    detection_ns: int = 0
    serialisation_ns: int = 0
    replacement_wait_ns: int = 0
    retrieval_ns: int = 0
    warm_up_ns: int = 0
    iterations: int = 0
    recoveries: int = 0
    recoveries_in_place: int = 0
    software_failures: int = 0
    hardware_failures: int = 0
    set_aside: int = 0
    corruptions: int = 0
    spare_failures: int = 0
    standby_empty: int = 0
    recovered_own_memory: int = 0
    recovered_peer: int = 0
    recovered_storage: int = 0
    recovered_scratch: int = 0
    recovered_pending: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return every figure by its name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def recovered(self, source: int) -> None:
        """Count a failure by the code of what its recovery loaded from."""
        name = f"recovered_{SOURCE_NAMES[source]}"
        setattr(self, name, getattr(self, name) + 1)

    def wasted_ns(self) -> int:
        """Return the sum of all wasted time."""
        return sum(getattr(self, f"{part}_ns") for part in WASTE_KINDS)

    def check(self) -> None:
        """Raise AssertionError unless the parts sum to the whole and every failure is counted."""
        total = self.useful_ns + self.wasted_ns()
        assert total == self.wall_ns, f"parts sum to {total} ns, wall time is {self.wall_ns} ns"
        recovered = sum(getattr(self, f"recovered_{name}") for name in SOURCE_NAMES)
        failures = self.software_failures + self.hardware_failures
        failures += self.set_aside + self.corruptions
        assert recovered == failures, f"{failures} failures, {recovered} accounted for"
