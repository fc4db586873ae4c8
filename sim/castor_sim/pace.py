"""How fast a job trains: a collective job goes at the pace of its slowest machine.

A slow machine stretches all of training, checkpoint traffic included: the time of a segment of
training runs slower than the wall's. In thousandths of a nanosecond that is whole, so that what
ends at an instant is the same whichever way it is reckoned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import simpy

from castor_sim.machines import OUTSIDE, Machines
from castor_sim.simpy_failures import SET_ASIDE, LateEvent, Process

FULL_SPEED = 1000
"""Speeds are in thousandths."""


class Slowdown(NamedTuple):
    """A machine is slow for a while; times in ns.

    Attributes:
        time_ns: from then on.
        machine: as failures name it.
        speed: of training with it, in thousandths, 1 to 999.
        duration_ns: so long, unless the machine is replaced before.
        set_aside_ns: where a standby is free it takes the place of a machine that has been slow for
            so long; looked at as often. 0: never.
        restore_ns: until another stands by in place of one set aside.
    """

    time_ns: int
    machine: int
    speed: int
    duration_ns: int
    set_aside_ns: int = 0
    restore_ns: int = 0


class TrainingClock:
    """The time of one segment of training.

    Args:
        env: the simulation.
        speed: that it begins with.
    """

    def __init__(self, env: simpy.Environment, speed: int) -> None:
        self._env = env
        self._speed = speed
        self._since_ns = int(env.now)
        self._before = 0
        """Thousandths of ns until then."""
        self._earlier: list[tuple[int, int, int]] = []
        """(since, thousandths before, speed) of each pace before this one."""
        self._changed = env.event()

    def change(self, speed: int) -> None:
        """Run at another speed from now on."""
        if speed == self._speed:
            return
        before = self._thousandths()
        self._earlier.append((self._since_ns, self._before, self._speed))
        self._since_ns, self._before, self._speed = int(self._env.now), before, speed
        self._changed.succeed()
        self._changed = self._env.event()

    def _thousandths(self) -> int:
        return self._before + (int(self._env.now) - self._since_ns) * self._speed

    def elapsed_ns(self) -> int:
        """Return how much training the segment has had, in whole ns."""
        return self._thousandths() // FULL_SPEED

    def wall_ns(self, elapsed_ns: int) -> int:
        """Return when (past) the segment had had `elapsed_ns` of training."""
        wanted = elapsed_ns * FULL_SPEED
        paces = [*self._earlier, (self._since_ns, self._before, self._speed)]
        since_ns, before, speed = next(pace for pace in reversed(paces) if pace[1] <= wanted)
        return since_ns - (before - wanted) // speed

    def reach(self, elapsed_ns: int) -> Process:
        """Wait until the segment has had `elapsed_ns` of training."""
        while (left := elapsed_ns * FULL_SPEED - self._thousandths()) > 0:
            timeout = self._env.timeout(-(-left // self._speed))
            yield timeout | self._changed


class Pace:
    """Which machines are slow, and the clock of the segment of training that is under way.

    Args:
        env: the simulation.
        machines: says which of them work for the job.
        slowdowns: in order of time.
        set_aside: called for a machine that may be set aside; returns whether it was.
    """

    def __init__(
        self,
        env: simpy.Environment,
        machines: Machines,
        slowdowns: Iterable[Slowdown],
        set_aside: Callable[[Slowdown], bool],
    ) -> None:
        self._env = env
        self._machines = machines
        self._set_aside = set_aside
        self._slow: list[Slowdown] = []
        self.clock = TrainingClock(env, FULL_SPEED)
        env.process(self._begin_all(slowdowns))

    def train(self) -> None:
        """Begin a segment of training."""
        self.clock = TrainingClock(self._env, self._speed())

    def replaced(self, machine: int) -> None:
        """Take in that a machine is gone, and with it what made it slow."""
        self._slow = [one for one in self._slow if one.machine != machine]

    def _speed(self) -> int:
        working = (one for one in self._slow if self._machines.position(one.machine) != OUTSIDE)
        return min((one.speed for one in working), default=FULL_SPEED)

    def _begin_all(self, slowdowns: Iterable[Slowdown]) -> Process:
        for one in slowdowns:
            yield self._env.timeout(one.time_ns - int(self._env.now))
            self._slow.append(one)
            self.clock.change(self._speed())
            self._env.process(self._end(one))
            if one.set_aside_ns:
                self._env.process(self._watch(one))

    def _end(self, slowdown: Slowdown) -> Process:
        yield self._env.timeout(slowdown.duration_ns)
        self._slow = [one for one in self._slow if one is not slowdown]
        self.clock.change(self._speed())

    def _watch(self, slowdown: Slowdown) -> Process:
        while True:
            yield LateEvent(self._env, slowdown.set_aside_ns, SET_ASIDE)
            if not any(one is slowdown for one in self._slow) or self._set_aside(slowdown):
                return
