"""Which machines work for the job, which stand by, and when a lost one is replaced.

Two operators. A cloud hands out machines without identity: each lost machine is requested anew,
and the request is filled after a while; a failure names a position of the job, whoever holds it.
A fleet is a fixed set of machines with identities: a lost one goes to repair and comes back, the
spare ones stand by, and a failure names a machine wherever it is just then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import simpy

from castor_sim.tally import Operations

OUTSIDE = -1
"""A failure that did not hit a machine of the job."""


class Machines(Protocol):
    """What the engine asks of an operator.

    Attributes:
        ready_ns: no earlier may a recovery go on, for a standby or a dedicated request.
        standby_empty: lost machines so far for which no standby was ready.
    """

    ready_ns: int
    standby_empty: int

    def position(self, machine: int) -> int:
        """Return the job's position that a failure of `machine` hits, or OUTSIDE."""

    def lose(self, machine: int, restore_ns: int, detected_ns: int) -> int:
        """Take `machine` out; return the position that it held, or OUTSIDE.

        It is back, or its replacement there, `restore_ns` after its failure (fleet) or after its
        detection (cloud).
        """

    def vacant(self) -> int:
        """Return how many positions wait for a machine."""

    def has_standby(self) -> bool:
        """Return whether a machine could take a lost one's position now."""


class CloudMachines:
    """Machines requested from a provider; see `Operations.dedicated` for who gets which."""

    def __init__(
        self, env: simpy.Environment, operations: Operations, arrived: Callable[[], None]
    ) -> None:
        self._env = env
        self._operations = operations
        self._arrived = arrived
        self._outstanding = 0
        self.ready_ns = 0
        self.standby_empty = 0

    def position(self, machine: int) -> int:
        """Return `machine`: a failure names a position."""
        return machine

    def lose(self, machine: int, restore_ns: int, detected_ns: int) -> int:
        """Use a standby if one is ready, and request a machine."""
        operations = self._operations
        arrival_ns = detected_ns + restore_ns
        if self.has_standby():
            self.ready_ns = max(self.ready_ns, detected_ns + operations.activation_ns)
        else:
            self.standby_empty += 1
            if operations.dedicated:
                self.ready_ns = max(self.ready_ns, arrival_ns)
                return machine
        self._outstanding += 1
        request = self._env.timeout(arrival_ns - self._env.now)
        request.callbacks.append(self._arrive)
        return machine

    def _arrive(self, _request: simpy.Event) -> None:
        self._outstanding -= 1
        self._arrived()

    def vacant(self) -> int:
        """Return the requests beyond what the standbys cover."""
        return max(0, self._outstanding - self._operations.standbys)

    def has_standby(self) -> bool:
        """Return whether fewer machines are requested than there are standbys."""
        return self._outstanding < self._operations.standbys


class FleetMachines:
    """A fixed set of machines: positions, standbys and repair, first in, first out."""

    def __init__(
        self, env: simpy.Environment, operations: Operations, arrived: Callable[[], None]
    ) -> None:
        self._env = env
        self._operations = operations
        self._arrived = arrived
        positions, fleet = operations.positions, operations.fleet
        self._position_of = list(range(positions)) + [OUTSIDE] * (fleet - positions)
        self._standbys = deque(range(positions, fleet))
        self._waiting: deque[int] = deque()
        self._back_ns = [0] * fleet
        self._down = [False] * fleet
        self.ready_ns = 0
        self.standby_empty = 0

    def position(self, machine: int) -> int:
        """Return the position that `machine` holds, or OUTSIDE."""
        return self._position_of[machine]

    def lose(self, machine: int, restore_ns: int, detected_ns: int) -> int:
        """Send `machine` to repair and give its position to a standby.

        A fault of a machine that is down already lengthens its repair if it ends later.
        """
        back_ns = int(self._env.now) + restore_ns
        position = self._position_of[machine]
        if self._down[machine]:
            if back_ns <= self._back_ns[machine]:
                return OUTSIDE
        else:
            self._down[machine] = True
            if position == OUTSIDE:
                self._standbys.remove(machine)
            else:
                self._position_of[machine] = OUTSIDE
                self._replace(position, detected_ns)
        self._back_ns[machine] = back_ns
        repair = self._env.timeout(restore_ns, machine)
        repair.callbacks.append(self._return)
        return position

    def _replace(self, position: int, detected_ns: int) -> None:
        if self._standbys:
            self._position_of[self._standbys.popleft()] = position
            self.ready_ns = max(self.ready_ns, detected_ns + self._operations.activation_ns)
        else:
            self.standby_empty += 1
            self._waiting.append(position)

    def _return(self, repair: simpy.Event) -> None:
        machine = repair.value
        assert isinstance(machine, int), "the timeout carries the machine"
        if not self._down[machine] or self._back_ns[machine] != self._env.now:
            return
        self._down[machine] = False
        if self._waiting:
            self._position_of[machine] = self._waiting.popleft()
            self._arrived()
        else:
            self._standbys.append(machine)

    def vacant(self) -> int:
        """Return the positions that no machine holds."""
        return len(self._waiting)

    def has_standby(self) -> bool:
        """Return whether a machine of the fleet stands by."""
        return bool(self._standbys)
