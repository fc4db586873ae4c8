"""The simpy model: tasks on their lanes, and a checkpoint's chunks in between.

Rules, in the order in which they matter:

- A lane serves one operation at a time, first come, first served; nothing is cut short. The GPUs'
  own tasks follow one another by what they wait for. So a chunk
  that overruns its span delays the training operation behind it by what is left of the chunk.
- A span opens when the network task before it has ended. Its chunks follow one another; each
  waits for a free sub-buffer at the receiver. A machine receives while it sends, and what it
  receives is as large as what it sends, so that one network lane and one set of buffers stand
  for both directions.
- A chunk takes its sub-buffer from the start of its transfer until it was copied to CPU memory.
- The machine's own replica is copied in pieces while training traffic is under way (sec. 5.2), so
  that it does not meet the copies of received chunks; once all chunks are sent or no training
  traffic is left, without waiting.
- The update waits until all chunks have left and the own replica is copied (invariant 2).
- Where there is no copy hop (copy_link None), received chunks lie in CPU memory when they arrive,
  and the own replica was copied at hand-over, before the first chunk left.
- With a commit, the update waits until everything lies in CPU memory and all machines have agreed
  on it; so does training where a checkpoint is sent before it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import simpy

from castor_policy.chunk_schedule import Chunk, Link, Schedule
from castor_sim.iteration.tasks import Kind, Lane, Task
from castor_sim.iteration.timeline import COPY_LANE, START, Interval, Traffic

Process = Generator[simpy.Event, None, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """How one machine sends a checkpoint in an iteration.

    Attributes:
        schedule: of each GPU.
        opens_after: for each span of the schedule, the network task before it, or START.
        link: one GPU's share of the network card.
        copy_link: one GPU's share of the copies to CPU memory; None: there is no such hop.
        sub_buffers: how many chunks a GPU holds at most; None: as many as come.
        local_pieces: sizes in which each GPU copies its own replica.
        gpus: of the machine, all of which do the same at the same time.
        capture_ns: from the hand-over until the first chunk may leave.
        commit_ns: records and agreement behind the transfers; 0: nothing waits for them.
        late_ns: by how much a span opens later at the other end, which its first chunk waits for.
    """

    schedule: Schedule
    opens_after: tuple[int, ...]
    link: Link
    copy_link: Link | None
    sub_buffers: int | None
    local_pieces: tuple[int, ...]
    gpus: int
    capture_ns: int = 0
    commit_ns: int = 0
    late_ns: int = 0


@dataclass(frozen=True, slots=True)
class SimulatedIteration:
    """One simulated iteration.

    Attributes:
        end_ns: when the last machine's update ended.
        intervals: what ran, in order of the end.
        peak_buffer_bytes: most that one GPU held of received chunks.
        checkpoint_complete_ns: when the last chunk was in CPU memory; 0 without a checkpoint.
    """

    end_ns: int
    intervals: tuple[Interval, ...]
    peak_buffer_bytes: int
    checkpoint_complete_ns: int


def run_iteration(
    tasks: Sequence[Task],
    sendings: Sequence[Sending] | None = None,
    *,
    machines: int = 1,
    factors: Sequence[float] | None = None,
    network_share: Fraction = Fraction(1),
) -> SimulatedIteration:
    """Run one iteration.

    Args:
        tasks: as `check_tasks` wants them.
        sendings: one for each machine; None: no checkpoint.
        machines: that the tasks name.
        factors: for each task, by what its duration is multiplied (jitter).
        network_share: share of the network card that is left beside other traffic, above 0.
    """
    engine = _Engine(simpy.Environment(), tasks, machines, factors, network_share)
    return engine.run(sendings)


@dataclass(slots=True)
class _Machine:
    """A machine's lanes, and how far its traffic is."""

    network: simpy.Resource
    link: simpy.Resource
    copy: simpy.Resource
    traffic_left: int
    in_traffic: bool = False
    held_bytes: int = 0
    peak_bytes: int = 0
    started: simpy.Event | None = None
    """Succeeds when training traffic next starts or has ended for good, or all chunks are sent."""
    chunks_left: bool = True
    may_train: list[simpy.Event] = field(default_factory=list)
    may_update: list[simpy.Event] = field(default_factory=list)


class _Engine:
    def __init__(
        self,
        env: simpy.Environment,
        tasks: Sequence[Task],
        machines: int,
        factors: Sequence[float] | None,
        network_share: Fraction,
    ) -> None:
        self.env = env
        self.tasks = tasks
        self.factors = factors
        self.network_share = network_share
        self.ended = [env.event() for _ in tasks]
        self.left = [len(set(task.after)) for task in tasks]
        self.followers: list[list[int]] = [[] for _ in tasks]
        for index, task in enumerate(tasks):
            for before in sorted(set(task.after)):
                self.followers[before].append(index)
        self.machines = [self._machine(tasks, machine) for machine in range(machines)]
        self.intervals: list[Interval] = []
        self.complete_ns = 0

    def run(self, sendings: Sequence[Sending] | None) -> SimulatedIteration:
        for number, sending in enumerate(sendings or ()):
            self._start_checkpoint(number, self.machines[number], sending)
        for index, left in enumerate(self.left):
            if left == 0:
                self.env.process(self._task(index))
        self.env.run()
        updates = [i.end_ns for i in self.intervals if i.kind == Kind.UPDATE]
        assert len(updates) >= len(self.machines), "a machine never updated"
        return SimulatedIteration(
            end_ns=max(updates),
            intervals=tuple(self.intervals),
            peak_buffer_bytes=max(machine.peak_bytes for machine in self.machines),
            checkpoint_complete_ns=self.complete_ns,
        )

    def _machine(self, tasks: Sequence[Task], number: int) -> _Machine:
        traffic = sum(task.is_training_traffic and task.machine == number for task in tasks)
        network, link, copy = (simpy.Resource(self.env) for _ in range(3))
        return _Machine(network, link, copy, traffic)

    def _task(self, index: int) -> Process:
        task = self.tasks[index]
        machine = self.machines[task.machine]
        if not task.after:
            yield from _all_of(machine.may_train)
        if task.kind is Kind.UPDATE:
            yield from _all_of(machine.may_update)
        lane = {Lane.NETWORK: machine.network, Lane.LINK: machine.link, Lane.GPU: None}[task.lane]
        turn = None if lane is None else lane.request()
        if turn is not None:
            yield turn
        start_ns = int(self.env.now)
        if task.is_training_traffic:
            machine.in_traffic = True
            self._tell(machine)
        yield self.env.timeout(self._duration_ns(index))
        if lane is not None and turn is not None:
            lane.release(turn)
        if task.is_training_traffic:
            machine.in_traffic = False
            machine.traffic_left -= 1
            if machine.traffic_left == 0:
                self._tell(machine)
        self._record(
            task.machine, task.lane, task.kind, task.name, start_ns, task.size_bytes, task=index
        )
        self.ended[index].succeed()
        for follower in self.followers[index]:
            self.left[follower] -= 1
            if self.left[follower] == 0:
                self.env.process(self._task(follower))

    def _duration_ns(self, index: int) -> int:
        task = self.tasks[index]
        if task.lane is Lane.NETWORK:
            return self._on_network_ns(task.duration_ns)
        if self.factors is None:
            return task.duration_ns
        return round(task.duration_ns * self.factors[index])

    def _on_network_ns(self, alone_ns: int) -> int:
        return -(-alone_ns * self.network_share.denominator // self.network_share.numerator)

    def _tell(self, machine: _Machine) -> None:
        if machine.started is not None:
            machine.started.succeed()
            machine.started = None

    def _start_checkpoint(self, number: int, machine: _Machine, sending: Sending) -> None:
        limit = sending.sub_buffers
        buffers = None if limit is None else simpy.Resource(self.env, capacity=limit)

        copies: list[simpy.Event] = []

        def send(chunks: Sequence[Chunk], late_ns: int = 0) -> Process:
            for chunk in chunks:
                yield from self._chunk(number, machine, sending, chunk, buffers, copies, late_ns)
                late_ns = 0

        def first() -> Process:
            yield self.env.timeout(sending.capture_ns)
            yield from send(sending.schedule.upfront)

        def spans() -> Process:
            yield upfront
            for after, span in zip(sending.opens_after, sending.schedule.spans, strict=True):
                if span.chunks:
                    if after != START:
                        yield self.ended[after]
                    yield from send(span.chunks, sending.late_ns)
            machine.chunks_left = False
            self._tell(machine)

        upfront = self.env.process(first())
        transfers = (
            self.env.process(spans()),
            self.env.process(self._local_copy(number, machine, sending)),
        )

        machine.may_update.extend(transfers)
        blocks = [upfront] if sending.schedule.upfront else []
        if sending.commit_ns:
            committed = self.env.process(self._commit(transfers, copies, sending.commit_ns))
            machine.may_update.append(committed)
            blocks = [committed] if blocks else []
        machine.may_train.extend(blocks)

    def _chunk(
        self,
        number: int,
        machine: _Machine,
        sending: Sending,
        chunk: Chunk,
        buffers: simpy.Resource | None,
        copies: list[simpy.Event],
        late_ns: int,
    ) -> Process:
        """Send one chunk; its copy to CPU memory goes on when this returns."""
        buffer = None if buffers is None else buffers.request()
        if buffer is not None:
            yield buffer
        size_bytes = chunk.size_bytes
        with machine.network.request() as turn:
            yield turn
            start_ns = int(self.env.now)
            machine.held_bytes += size_bytes
            machine.peak_bytes = max(machine.peak_bytes, machine.held_bytes)
            alone_ns = sending.link.transfer_ns(size_bytes)
            yield self.env.timeout(late_ns + self._on_network_ns(alone_ns))
        name = f"replica {chunk.replica}"
        on_machine = size_bytes * sending.gpus
        self._record(number, Lane.NETWORK, Traffic.CHUNK, name, start_ns, on_machine)

        def free() -> None:
            machine.held_bytes -= size_bytes
            self.complete_ns = int(self.env.now)
            if buffers is not None and buffer is not None:
                buffers.release(buffer)

        if sending.copy_link is None:
            free()
            return
        copy = self._copy(
            number, machine, sending.copy_link, sending.gpus, size_bytes, Traffic.COPY, name, free
        )
        copies.append(self.env.process(copy))

    def _copy(
        self,
        number: int,
        machine: _Machine,
        link: Link,
        gpus: int,
        size_bytes: int,
        kind: Traffic,
        name: str,
        then: Callable[[], None] | None = None,
    ) -> Process:
        with machine.copy.request() as turn:
            yield turn
            start_ns = int(self.env.now)
            yield self.env.timeout(link.transfer_ns(size_bytes))
        self._record(number, COPY_LANE, kind, name, start_ns, size_bytes * gpus)
        if then is not None:
            then()

    def _local_copy(self, number: int, machine: _Machine, sending: Sending) -> Process:
        if sending.copy_link is None:
            return  # at hand-over, which capture_ns stands for
        for size_bytes in sending.local_pieces:
            while not machine.in_traffic and machine.traffic_left and machine.chunks_left:
                if machine.started is None:
                    machine.started = self.env.event()
                yield machine.started
            yield from self._copy(
                number,
                machine,
                sending.copy_link,
                sending.gpus,
                size_bytes,
                Traffic.LOCAL_COPY,
                "own replica",
            )

    def _commit(
        self, transfers: Sequence[simpy.Event], copies: Sequence[simpy.Event], commit_ns: int
    ) -> Process:
        yield from _all_of(transfers)
        yield from _all_of(copies)  # by now all have begun
        yield self.env.timeout(commit_ns)

    def _record(
        self,
        number: int,
        lane: str,
        kind: str,
        name: str,
        start_ns: int,
        size_bytes: int,
        *,
        task: int | None = None,
    ) -> None:
        end_ns = int(self.env.now)
        self.intervals.append(
            Interval(number, lane, kind, name, start_ns, end_ns, size_bytes, task)
        )


def _all_of(events: Sequence[simpy.Event]) -> Process:
    for event in events:
        if not event.processed:
            yield event
