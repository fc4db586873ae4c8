"""The oracle: every iteration and every chunk of every checkpoint is an event of its own.

Only training differs from `castor_sim.simpy_engine`, and none of `castor_sim.path` is used, so
that the closed form between failures is held against a simulation that does not know it.
"""

from __future__ import annotations

from castor_policy.in_place import SPARES_AFTER
from castor_policy.period import is_due
from castor_sim.activity import Activity
from castor_sim.simpy_engine import SimpyEngine
from castor_sim.simpy_failures import Process

CHUNKS = 4
"""Chunks in which a checkpoint travels; the parts of an iteration, too."""


def chunks_ns(total_ns: int, count: int = CHUNKS) -> list[int]:
    """Cut a time into `count` parts that differ by 1 ns at most and sum to it."""
    whole, rest = divmod(total_ns, count)
    return [whole + (index < rest) for index in range(count)]


class ExactEngine(SimpyEngine):
    """The simpy engine with every iteration and chunk simulated one by one."""

    _done = 0
    _stalled_ns = 0
    _stall_began_ns = -1
    _memory_complete = -1
    _storage_complete = -1
    _spares_ns = -1
    _segment = 0

    def training(self) -> Process:
        """Train iteration by iteration, with the transfers as processes beside it."""
        costs = self.costs
        self._clock, self._at_ns = self._pace.clock, 0
        self._segment += 1
        self._done = self.start
        self._stalled_ns = 0
        self._stall_began_ns = -1
        self._memory_complete = self._storage_complete = self._spares_ns = -1
        while True:
            for chunk_ns in chunks_ns(costs.iteration_ns):
                yield from self._train_for(chunk_ns)
            self._done += 1
            if self._done == self.target:
                return
            if self._done == self.start + SPARES_AFTER:
                self._spares_ns = self._at_ns
            if costs.memory_every and is_due(self._done, costs.memory_every):
                yield from self._stall(costs.memory_stall_ns)
                self._begin_transfer(costs.memory_transfer_ns, memory=True)
            if costs.storage_every and is_due(self._done, costs.storage_every):
                yield from self._stall(costs.storage_stall_ns)
                self._begin_transfer(costs.storage_transfer_ns, memory=False)

    def _train_for(self, duration_ns: int) -> Process:
        """Let so much time of the segment pass, after what has ended in it last."""
        self._at_ns += duration_ns
        yield from self._clock.reach(self._at_ns)

    def _stall(self, stall_ns: int) -> Process:
        self._stall_began_ns = self._at_ns
        yield from self._train_for(stall_ns)
        self._stalled_ns += stall_ns
        self._stall_began_ns = -1

    def _begin_transfer(self, transfer_ns: int, *, memory: bool) -> None:
        began_ns = self._at_ns
        self.env.process(self._transfer(began_ns, transfer_ns, self._done, memory=memory))

    def _transfer(self, at_ns: int, transfer_ns: int, iteration: int, *, memory: bool) -> Process:
        segment, clock = self._segment, self._clock
        for chunk_ns in chunks_ns(transfer_ns):
            at_ns += chunk_ns
            yield from clock.reach(at_ns)
            if segment != self._segment or not self._job_trains():
                return
        if memory:
            self._memory_complete = iteration
        else:
            self._storage_complete = iteration

    def _job_trains(self) -> bool:
        return self._time.activity == Activity.TRAINING

    def trained(self, elapsed_ns: int) -> tuple[int, int, int, int, int]:
        """Return what was counted one by one; see `SimpyEngine.trained`."""
        assert elapsed_ns == self._clock.elapsed_ns(), "expected the present time"
        stalled_ns = self._stalled_ns
        if self._stall_began_ns >= 0:
            stalled_ns += elapsed_ns - self._stall_began_ns
        complete = (self._memory_complete, self._storage_complete)
        return self._done, stalled_ns, *complete, self._spares_ns
