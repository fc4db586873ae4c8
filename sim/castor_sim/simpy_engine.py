"""The cluster under failures as simpy processes: training, detection, replacement, recovery.

Ties at one instant are settled by one rule: an event that ends at time t (an iteration, a
checkpoint, a repair, a recovery phase) counts as done if a failure happens at t; failures at t
happen together, and the run ends after both. The engines of `castor_sim.jump_engine` and
`castor_sim.exact_engine` hold to it too.

Training between two failures is closed form (`castor_sim.path`), so cost follows failures.
docs/simulator.md states the model in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import simpy
from simpy.events import Event as SimpyEvent

from castor_policy.membership import known_ns
from castor_policy.recovery import (
    NOTHING,
    OWN_MEMORY,
    PEER,
    SCRATCH,
    TIERS,
    choose,
)
from castor_records.events import failures as told
from castor_records.events.event import Entry, Event
from castor_sim import path
from castor_sim.activity import Activity, TimeSpent
from castor_sim.corruption import Integrity, Persisted
from castor_sim.machines import OUTSIDE, CloudMachines, FleetMachines, Machines
from castor_sim.memory import Memory
from castor_sim.pace import Pace, Slowdown
from castor_sim.simpy_failures import RUN_ENDS, STRIKES_LAST, LateEvent, Process, batches
from castor_sim.strategy_costs import NEVER_NS, StrategyCosts
from castor_sim.strikes import Strikes
from castor_sim.tally import HARDWARE, PENDING, SOFTWARE, Operations, Tally
from castor_sim.trainers import Trainers
from castor_sim.troubles import NO_TROUBLES, Troubles


class SimpyEngine:
    """One run of one strategy; `run` returns its tally.

    Args:
        costs: the strategy's figures.
        operations: how the cluster is operated.
        replicas: for each position, the positions that hold its shard, itself first.
        strikes: the failures in order of time.
        horizon_ns: the run ends here at the latest.
        target_iterations: the run ends with this iteration, if not 0.
        observe: called with each event, if given.
        troubles: what goes wrong beside failures.
    """

    def __init__(
        self,
        costs: StrategyCosts,
        operations: Operations,
        replicas: Sequence[Sequence[int]],
        strikes: Iterable[Strikes],
        *,
        horizon_ns: int = NEVER_NS,
        target_iterations: int = 0,
        observe: Callable[[Entry[Event]], None] | None = None,
        record_sources: bool = False,
        troubles: Troubles = NO_TROUBLES,
    ) -> None:
        self.env = simpy.Environment(initial_time=0)
        self.costs = costs
        self.operations = operations
        self.replicas = replicas
        self.target = target_iterations
        self.tally = Tally()
        self.sources: list[int] | None = [] if record_sources else None
        self._strikes = strikes
        self._horizon_ns = horizon_ns
        self._observe = observe
        self._arrival: SimpyEvent | None = None
        kind = FleetMachines if operations.fleet else CloudMachines
        self._machines: Machines = kind(self.env, operations, self._machine_arrived)
        self._pace = Pace(self.env, self._machines, troubles.slowdowns, self._set_aside)
        self._integrity = Integrity(
            self.env, troubles.corruptions, self._iterations_done, self._corruption_seen
        )
        # Progress. `start` is the iteration that this segment of training began from.
        self.start = 0
        self.segment_ns = 0
        self._time = TimeSpent()
        self._progress_ns = 0
        self._restored = 0
        # Checkpoints: those that are complete.
        self._persisted = Persisted(costs.storage_every, troubles.persistent_kept)
        self._memory = Memory(operations.positions)
        self._trainers = Trainers(costs, operations.positions)
        self._detected_ns = 0
        self._tier = SCRATCH
        self._heaviest = 0
        self._episode: list[int] = []

    def run(self) -> Tally:
        """Run to the horizon or the target; return what it came to."""
        self._emit(lambda: told.RunStarted(positions=self.operations.positions))
        finished = self.env.event()
        self._job = self.env.process(self._train_and_recover(finished))
        self.env.process(self._strike_all())
        if self._horizon_ns < NEVER_NS:
            horizon = LateEvent(self.env, self._horizon_ns, RUN_ENDS)
            horizon.callbacks.append(finished.trigger)
        self.env.run(until=finished)
        self._finish()
        return self.tally

    @property
    def now_ns(self) -> int:
        """The simulated time; simpy adds integer delays to an integer start, so it is one."""
        now = self.env.now
        assert isinstance(now, int), "a delay was no integer"
        return now

    # ------------------------------------------------------------------ training

    def training(self) -> Process:
        """Train from `start` until a failure interrupts; return when the target is reached."""
        if self.target:
            end_ns = path.end_of_iteration_ns(self.costs, self.start, self.target)
            yield from self._pace.clock.reach(end_ns)
        else:
            yield self.env.event()

    def trained(self, elapsed_ns: int) -> tuple[int, int, int, int, int]:
        """Return what `elapsed_ns` of this segment brought.

        The last iteration that ended, the time stalled, the newest complete memory and storage
        checkpoints, and when in it spares were started (-1: not in this segment).
        """
        costs, start = self.costs, self.start
        done = path.iterations_at(costs, start, elapsed_ns)
        return (
            done,
            path.stalled_ns(costs, start, done, elapsed_ns),
            path.memory_checkpoint_at(costs, start, done, elapsed_ns),
            path.storage_checkpoint_at(costs, start, done, elapsed_ns),
            path.spares_begun_at(costs, start, done),
        )

    def _train_and_recover(self, finished: SimpyEvent) -> Process:
        while True:
            try:
                yield from self.training()
            except simpy.Interrupt:
                yield from self._recover_at_last()
            else:
                finished.succeed()
                return

    def _recover_at_last(self) -> Process:
        """Recover, anew after each failure that strikes meanwhile."""
        while True:
            try:
                yield from self._recover()
            except simpy.Interrupt:
                continue
            return

    def _settle_training(self) -> None:
        """Book the training since the segment began; note which checkpoints it completed."""
        elapsed_ns = self._pace.clock.elapsed_ns()
        done, stalled_ns, memory, storage, spares_ns = self.trained(elapsed_ns)
        if memory >= 0:
            self._memory.completed(memory)
        if storage >= 0:
            self._persisted.completed(self.start, storage)
        if spares_ns >= 0:
            self._trainers.start_spares(self._pace.clock.wall_ns(spares_ns))
        self.tally.slow_ns += self.now_ns - self.segment_ns - elapsed_ns
        self.tally.iterations = done
        self.tally.checkpoint_stall_ns += stalled_ns
        self._progress_ns = self.start * self.costs.iteration_ns + elapsed_ns - stalled_ns

    # ------------------------------------------------------------------ failures

    def _strike_all(self) -> Process:
        for time_ns, members in batches(self._strikes, self._horizon_ns):
            yield LateEvent(self.env, time_ns - self.now_ns, STRIKES_LAST)
            self._strike(members)

    def _strike(self, members: list[tuple[int, int, int]]) -> None:
        """Let all failures of this instant strike at once."""
        machines, operations = self._machines, self.operations
        struck = False
        for machine, hardware, restore_ns in members:
            detected_ns = known_ns(
                self.now_ns,
                hardware,
                operations.heartbeat_ns,
                operations.poll_ns,
                operations.misses,
                operations.exit_ns,
                operations.unreached_ns,
                machines.has_standby(),
            )
            if hardware:
                position = machines.lose(machine, restore_ns, detected_ns)
                self._pace.replaced(machine)
            else:
                position = machines.position(machine)
            if position == OUTSIDE:
                self.tally.spare_failures += 1
                continue
            if not struck:
                self._leave()
                struck = True
            # What is known sooner of a later failure does not tell of an earlier one.
            self._detected_ns = max(self._detected_ns, detected_ns)
            if hardware:
                self.tally.hardware_failures += 1
                self._hit(machine, position, "hardware", is_lost=True)
            else:
                self.tally.software_failures += 1
                self._hit(machine, position, "software", is_lost=False)
        if struck:
            self._detect()

    def _hit(self, machine: int, position: int, failure: str, *, is_lost: bool) -> None:
        """Take in what of a position is gone: its machine, or its trainers alone."""
        if is_lost or self.costs.memory_in_trainer:
            self._memory.lose(position)
        self._trainers.lose(position, machine=is_lost)
        self._episode.append(HARDWARE if is_lost else SOFTWARE)
        self._emit(partial(told.Failed, machine=machine, position=position, failure=failure))

    def _set_aside(self, slow: Slowdown) -> bool:
        """Give the place of a slow machine to a standby; return whether it was done."""
        position = self._machines.position(slow.machine)
        trains = self._time.activity == Activity.TRAINING
        if position == OUTSIDE or not trains or not self._machines.has_standby():
            return False
        self._leave()
        self._detected_ns = self.now_ns
        self._machines.lose(slow.machine, slow.restore_ns, self.now_ns)
        self._pace.replaced(slow.machine)
        self.tally.set_aside += 1
        self._hit(slow.machine, position, "set aside", is_lost=True)
        self._detect()
        return True

    def _iterations_done(self) -> int:
        if self._time.activity != Activity.TRAINING:
            return -1
        return self.trained(self._pace.clock.elapsed_ns())[0]

    def _corruption_seen(self) -> None:
        """Go back behind a silent error, whatever the job is doing."""
        self._leave()
        self._detected_ns = max(self._detected_ns, self.now_ns)
        self.tally.corruptions += 1
        self._emit(partial(told.Failed, failure="silent error"))
        self._episode.append(SOFTWARE)
        self._detect()

    def _detect(self) -> None:
        self._enter(Activity.DETECTION)
        self._job.interrupt()

    # ------------------------------------------------------------------ activities

    def _leave(self) -> None:
        """Close the activity that goes on now; replication in the background stops with it."""
        now_ns = self.now_ns
        if self._time.activity == Activity.TRAINING:
            self._settle_training()
        self._memory.interrupted(now_ns)
        self._enter(self._time.activity)

    def _enter(self, activity: Activity) -> None:
        self._time.enter(activity, self.now_ns)

    def _machine_arrived(self) -> None:
        if self._arrival is not None:
            self._arrival.succeed()
            self._arrival = None

    def _recover(self) -> Process:
        env, costs = self.env, self.costs
        yield env.timeout(self._detected_ns - env.now)
        self._plan()
        self._enter(Activity.SERIALISATION)
        if self._tier in (OWN_MEMORY, PEER):
            yield env.timeout(costs.serialise_ns)
            self._emit(told.Serialised)
        self._enter(Activity.REPLACEMENT_WAIT)
        yield from self._replacement()
        self._emit(told.Replaced)
        in_memory = self._tier in (OWN_MEMORY, PEER)
        warm_up_ns = self._trainers.begin(in_memory=in_memory, now_ns=self.now_ns)
        self._enter(Activity.RETRIEVAL)
        yield env.timeout(path.retrieval_ns(costs, self._tier, self._heaviest))
        self._retrieved()
        self._enter(Activity.WARM_UP)
        yield env.timeout(warm_up_ns)
        self._resume()

    def _plan(self) -> None:
        self._choose()
        self._emit(told.Detected)
        tier, lost = str(TIERS[self._tier]), len(self._memory.lost)
        self._emit(lambda: told.Planned(iteration=self._restored, tier=tier, lost=lost))

    def _choose(self) -> None:
        """Choose iteration and tier by the shared policy."""
        memory = self._memory
        self._restored, self._tier, self._heaviest = choose(
            memory.iteration,
            memory.most_held if memory.iteration <= self._integrity.limit else NOTHING,
            self._persisted.newest(self._integrity.limit),
            memory.lost,
            len(memory.lost),
            self.replicas,
            memory.state,
            memory.load,
            [0] * len(memory.lost),
        )

    def _replacement(self) -> Process:
        machines, env = self._machines, self.env
        while True:
            if machines.vacant():
                self._arrival = env.event()
                yield self._arrival
            elif machines.ready_ns > env.now:
                yield env.timeout(machines.ready_ns - env.now)
            else:
                return

    def _retrieved(self) -> None:
        """Every rank has its shard; replicas of others follow in the background."""
        self._attribute(self._tier)
        self._emit(partial(told.Retrieved, iteration=self._restored))
        self._persisted.loaded(self._restored)
        self._integrity.loaded(self._restored)
        if self.costs.memory_every == 0:
            return
        self._memory.retrieved(self._restored, self._tier, self.now_ns + self.costs.replicate_ns)

    def _resume(self) -> None:
        kept_ns, tier = self._restored * self.costs.iteration_ns, str(TIERS[self._tier])
        lost_ns = self._progress_ns - kept_ns
        self._emit(
            lambda: told.Resumed(iteration=self._restored, tier=tier, lost_progress_ns=lost_ns)
        )
        self.tally.recoveries += 1
        self.tally.recoveries_in_place += self._trainers.in_place
        self._trainers.train()
        self._progress_ns = kept_ns
        self.start = self._restored
        self._enter(Activity.TRAINING)
        self.segment_ns = self.now_ns
        self._pace.train()

    def _attribute(self, tier: int) -> None:
        """Count each failure since the last retrieval by what it was recovered from."""
        for kind in self._episode:
            source = tier
            if tier in (OWN_MEMORY, PEER):
                in_memory = kind == SOFTWARE and not self.costs.memory_in_trainer
                source = OWN_MEMORY if in_memory else PEER
            self.tally.recovered(source)
            if self.sources is not None:
                self.sources.append(source)
        self._episode.clear()

    # ------------------------------------------------------------------ the end

    def _finish(self) -> None:
        tally, activity = self.tally, self._time.activity
        self._enter(activity)
        if activity == Activity.TRAINING:
            self._settle_training()
            tally.useful_ns = self._progress_ns
        else:
            if activity == Activity.DETECTION:
                self._choose()
            tally.useful_ns = self._restored * self.costs.iteration_ns
            tally.iterations = self._restored
            self._attribute(PENDING)
        tally.wall_ns = self.now_ns
        self._time.book(tally)
        tally.standby_empty = self._machines.standby_empty
        self._emit(lambda: told.RunEnded(iteration=tally.iterations))
        tally.check()

    def _emit(self, make: Callable[[], Event]) -> None:
        """Tell who observes the run of an event; for nobody it is not even made."""
        if self._observe:
            self._observe(Entry(self.now_ns, make()))
