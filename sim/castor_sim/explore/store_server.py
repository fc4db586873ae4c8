"""The store at the far end of the network: `StoreModel`, its watches, and the time that it takes.

A request may be lost, or carried out and its answer lost, or carried out long after its sender has
given it up. A watch shows every change in order until it is cut; then it has to be made again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from castor_policy.agents.followed_keys import roots_keys
from castor_policy.agents.store_keys import plan_key
from castor_policy.store import Keys, LeaseLostError, StoreEvent, StoreUnavailableError
from castor_sim.explore.clockwork import Clockwork
from castor_sim.explore.network import STORE, Network
from castor_sim.explore.roles import Agent
from castor_sim.store_model import StoreModel

ResultT = TypeVar("ResultT")

TIMEOUT_S = 1.0
"""A client gives a request up after so long."""

_NOTICE_S = (0.05, 1.5)  # from when a connection breaks until its watch says so


@dataclass(slots=True, eq=False)
class Stream:
    """One agent's watches of some keys: each part of them is in order by itself."""

    agent: Agent
    keys: Keys
    deliver: Callable[[list[StoreEvent]], None]
    broken: Callable[[], None]
    open: bool = True
    delivered_s: dict[str, float] = field(default_factory=dict)

    def close(self) -> None:
        """End it: nothing more of it is delivered, nor is it told that it has broken."""
        self.open = False


class StoreServer:
    """The store of one world.

    Args:
        job: whose keys are watched.
        clock: of the world.
        network: between it and the agents.
        changed: told what was written, before those who watch are.
        lost: told when it has lost its data.
    """

    def __init__(
        self,
        job: str,
        clock: Clockwork,
        network: Network,
        changed: Callable[[list[StoreEvent]], None],
        lost: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._network = network
        self._tell_changed = changed
        self._tell_lost = lost
        self._all = roots_keys(job)
        self._plan = plan_key(job)
        self.model = StoreModel()
        self._backup: StoreModel | None = None
        self._shown = self.model.revision
        self._streams: dict[str, list[Stream]] = {}  # by each part of what they watch
        self._prefixes: dict[str, None] = {}  # those of the parts that are ones
        self._wakes_s = math.inf

    # ---- the server ----------------------------------------------------------------------------

    def apply(self, operation: Callable[[StoreModel, float], ResultT]) -> ResultT:
        """Carry out a request now, and show what it changed to those who watch.

        Raises:
            StoreUnavailableError: the store is down.
            LeaseLostError: see `StoreModel`.
        """
        try:
            return operation(self.model, self._clock.now_s)
        finally:
            self._show()

    def stop(self) -> None:
        """Take the store down; every connection breaks."""
        self.model.stop(self._clock.now_s)
        for stream in self._open_streams():
            self.cut(stream)

    def start(self) -> None:
        """Bring it back."""
        self.apply(lambda model, now_s: model.start(now_s))

    def lose_data(self, *, restored: bool) -> None:
        """Have it come back without its data, or with those that it had when the job began."""
        backup = self._backup if restored else None
        self.model.lose_data(self._clock.now_s, backup, other=False)
        self._shown = self.model.revision
        self._tell_lost()
        self._wakes_s = math.inf

    def cut_watches(self, agent: Agent) -> None:
        """Break the watches of one agent."""
        for stream in self._open_streams():
            if stream.agent is agent:
                self.cut(stream)

    def cut(self, stream: Stream) -> None:
        """Break one watch; its owner notices some time later."""
        if stream.open:
            stream.open = False
            stream.agent.later(stream.agent.draw.uniform(*_NOTICE_S), stream.broken)

    def _show(self) -> None:
        """Send what is new to the watches, tell the monitor, and wake when a lease ends."""
        if not self.model.running:
            return
        events = self.model.events(self._all, self._shown + 1, self._clock.now_s)
        if events:
            self._shown = events[-1].mod_revision
            if self._backup is None and any(event.key == self._plan for event in events):
                self._backup = self.model.backup()
            self._tell_changed(events)
            for part in dict.fromkeys((*(event.key for event in events), *self._prefixes)):
                if part in self._streams:
                    self._send_part(part, self._streams[part], events)
        end_s = self.model.next_end_s()
        if end_s < self._wakes_s:
            self._wakes_s = end_s
            self._clock.after(max(0.0, end_s - self._clock.now_s), self._wake, end_s)

    def _wake(self, at_s: float) -> None:
        if at_s != self._wakes_s:
            return  # an earlier wake has been set since
        self._wakes_s = math.inf
        self.model.advance(self._clock.now_s)
        self._show()

    def _send_part(self, part: str, streams: list[Stream], events: list[StoreEvent]) -> None:
        """Send what has changed of one name or prefix to all that watch it."""
        is_prefix = part in self._prefixes
        shown = [e for e in events if e.key == part or (is_prefix and e.key.startswith(part))]
        if not shown:
            return
        streams[:] = [stream for stream in streams if stream.open]
        for stream in tuple(streams):
            self._send(stream, part, shown)

    def _send(self, stream: Stream, part: str, events: list[StoreEvent]) -> None:
        agent = stream.agent
        network = self._network
        lost = network.loss(agent.name) > 0 and agent.draw.random() < network.loss(agent.name)
        if lost or not agent.alive or not network.reaches(STORE, agent.name):
            self.cut(stream)
            return
        # One watch: what was sent later arrives later.
        at_s = max(self._clock.now_s + agent.latency_s(), stream.delivered_s.get(part, 0.0))
        stream.delivered_s[part] = at_s
        agent.later(at_s - self._clock.now_s, _deliver, stream, events)

    def _open_streams(self) -> list[Stream]:
        """Return the watches that are open, in the order in which they were made."""
        every = (stream for streams in self._streams.values() for stream in streams)
        return [stream for stream in dict.fromkeys(every) if stream.open]

    # ---- a client ------------------------------------------------------------------------------

    def request(
        self,
        agent: Agent,
        operation: Callable[[StoreModel, float], ResultT],
        done: Callable[[ResultT | Exception], None],
        late_s: float = 0.0,
    ) -> None:
        """Send a request for `agent`; `done` gets the answer, or the error, unless it has died.

        A request sent is carried out even when its sender dies meanwhile.
        """
        network, now_s = self._network, self._clock.now_s
        timed_out = StoreUnavailableError("no answer in time")
        on_the_way_s = agent.latency_s() + late_s + network.late_s(agent.name)
        if self._is_lost(agent, agent.name, STORE):
            agent.later(TIMEOUT_S, done, timed_out)
        elif on_the_way_s >= TIMEOUT_S:
            agent.later(TIMEOUT_S, done, timed_out)
            self._clock.after(on_the_way_s, self._arrive, agent, operation, None, now_s)
        else:
            self._clock.after(on_the_way_s, self._arrive, agent, operation, done, now_s)

    def _arrive(
        self,
        agent: Agent,
        operation: Callable[[StoreModel, float], ResultT],
        done: Callable[[ResultT | Exception], None] | None,
        sent_s: float,
    ) -> None:
        answer: ResultT | Exception
        try:
            answer = self.apply(operation)
        except (StoreUnavailableError, LeaseLostError) as error:
            answer = error
        if done is None:
            return
        left_s = sent_s + TIMEOUT_S - self._clock.now_s
        back_s = agent.latency_s()
        if self._is_lost(agent, STORE, agent.name) or back_s >= left_s:
            agent.later(max(0.0, left_s), done, StoreUnavailableError("no answer in time"))
        else:
            agent.later(back_s, done, answer)

    def watch(
        self,
        agent: Agent,
        keys: Keys,
        from_revision: int,
        deliver: Callable[[list[StoreEvent]], None],
        broken: Callable[[], None],
    ) -> Stream:
        """Watch these keys; after `broken` read again and watch again."""
        stream = Stream(agent, keys, deliver, broken)
        is_attached = False

        def attach(model: StoreModel, now_s: float) -> None:
            nonlocal is_attached
            events = model.events(keys, from_revision, now_s)
            is_attached = True
            self._prefixes |= dict.fromkeys(keys.prefixes)
            for part in keys.parts() if stream.open else ():
                self._streams.setdefault(part, []).append(stream)
                self._send_part(part, [stream], events)

        def attached(answer: Exception | None) -> None:
            if answer is None or not stream.open:
                return
            if is_attached:
                self.cut(stream)
            else:
                stream.open = False
                broken()

        self.request(agent, attach, attached)
        return stream

    def _is_lost(self, agent: Agent, sender: str, receiver: str) -> bool:
        network = self._network
        if not network.reaches(sender, receiver):
            return True
        loss = network.loss(agent.name)
        return loss > 0 and agent.draw.random() < loss


def _deliver(stream: Stream, events: list[StoreEvent]) -> None:
    if stream.open:
        stream.deliver(events)
