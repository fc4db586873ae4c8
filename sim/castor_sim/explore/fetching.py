"""How a simulated agent fetches a part from its holders: as `castor_runtime.transport` does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from castor_policy.agents.effects import Fetch
from castor_policy.agents.events import Fetched, FetchFailed
from castor_policy.checkpoint_memory import BufferHeader, BufferState
from castor_policy.job_options import DEGRADED
from castor_sim.explore.checkpoint_model import CHUNKS, Chunk, Replica
from castor_sim.explore.roles import Agent
from castor_sim.explore.surroundings import Surroundings

_FETCH_S = (0.02, 0.3)
_BESIDE_S = (0.02, 4.0)  # of a replica beside training: checkpoints come before it, or after
_REFUSED_S = (0.01, 1.0)


Begin: TypeAlias = Callable[[tuple[float, float], Callable[[], None]], None]
"""Does something in the background after a drawn time, unless it is given up meanwhile."""


def peer_at(world: Surroundings, agent: Agent, address: str) -> Agent | None:
    """Return the agent at an address if it can be reached and answers."""
    peer = world.at(address)
    if peer is None or not world.network.connects(agent.name, peer.name):
        return None
    return None if peer.paused or peer.host.paused else peer


@dataclass(slots=True)
class PartFetch:
    """One fetch: begun by `start`, ended by one event of its agent's.

    Attributes:
        world: of all agents.
        agent: who fetches.
        effect: what, from whom.
        step: how the fetch goes on after a while.
        end: how its failure is told after a while.
    """

    world: Surroundings
    agent: Agent
    effect: Fetch
    step: Begin
    end: Begin
    _buffer: int = 0
    _digests: list[Chunk] = field(default_factory=list)
    _holders: dict[int, Agent] = field(default_factory=dict)
    _differing: list[int] = field(default_factory=list)
    _served: dict[int, None] = field(default_factory=dict)
    _whys: list[str] = field(default_factory=list)
    _reached: bool = False

    def start(self) -> None:
        """Take a buffer and ask all holders."""
        effect = self.effect
        self._buffer = self._own().begin(effect.iteration, effect.generation, None)
        self._open(effect.sources)

    def _open(self, sources: Iterable[int]) -> None:
        """Open the part at each holder: the first to answer says which checkpoint is fetched."""
        self._holders, self._differing, self._served, digests = {}, [], {}, None
        for source in self._in_any_order(sources):
            peer = peer_at(self.world, self.agent, self._address(source))
            found = self._held_by(peer)
            if peer is None:
                self._drop(source, "cannot be reached", reached=False)
            elif found is None:
                self._drop(source, "does not have the part")
            elif digests is None or found[1] == digests:
                digests, self._holders[source] = found[1], peer
            else:
                self._differing.append(source)
        self._digests = digests or []
        # The first chunk is read now, the last one at the end, from what is there then.
        first = self._read(0)
        if first is None:
            self._give_up()
            return
        slowness = min(peer.host.slowness for peer in self._holders.values())
        beside = self.world.spec.recovery.redundancy == DEGRADED and not self.effect.urgent
        least_s, most_s = _BESIDE_S if beside else _FETCH_S
        self.step((least_s * slowness, most_s * slowness), lambda: self._finish(first))

    def _finish(self, first: Chunk) -> None:
        rest = [self._read(place) for place in range(1, CHUNKS)]
        chunks = [first, *(chunk for chunk in rest if chunk is not None)]
        if len(chunks) < CHUNKS:
            self._give_up()
            return
        own, effect = self._own(), self.effect
        taken = BufferHeader(BufferState.WRITING, effect.iteration, effect.generation)
        is_alone = own.headers[self._buffer] == taken
        self.world.monitor.fetched(self.agent, effect.rank, is_alone=is_alone)
        for chunk in chunks:
            own.write(self._buffer, chunk)
        if own.commit(self._buffer, self._digests):
            self.world.monitor.stored(self.agent, effect.rank, own, self._buffer)
            sources = tuple(self._served)
            self.agent.see(Fetched(effect.generation, effect.rank, sources, CHUNKS, 0.0))

    def _read(self, place: int) -> Chunk | None:
        """Return a chunk that matches its digest, from any holder; who has none is left out."""
        for source in self._in_any_order(self._holders):
            if peer_at(self.world, self.agent, self._address(source)) is not self._holders[source]:
                self._drop(source, "went away", reached=False)
                continue
            found = self._held_by(self._holders[source])
            if (
                found is not None
                and found[0][place : place + 1] == self._digests[place : place + 1]
            ):
                self._served[source] = None
                return self._digests[place]
            self._drop(source, "sent chunks that differ from their digests")
        return None

    def _give_up(self) -> None:
        """Go on with who holds another checkpoint; with nobody, the fetch has failed."""
        if self._differing:
            self._open(self._differing)
            return
        why = "; ".join(self._whys)
        said = FetchFailed(self.effect.generation, self.effect.rank, why, not self._reached)
        self.end(_REFUSED_S, lambda: self.agent.see(said))

    def _drop(self, source: int, why: str, *, reached: bool = True) -> None:
        self._holders.pop(source, None)
        self._whys.append(f"machine {source} {why}")
        self._reached |= reached

    def _in_any_order(self, sources: Iterable[int]) -> list[int]:
        order = list(sources)
        if len(order) > 1:
            self.agent.draw.shuffle(order)
        return order

    def _own(self) -> Replica:
        return self.agent.host.memory[self.effect.rank]

    def _address(self, source: int) -> str:
        return self.effect.addresses[self.effect.sources.index(source)]

    def _held_by(self, peer: Agent | None) -> tuple[list[Chunk], list[Chunk]] | None:
        """Return the chunks of a holder's copy and their digests; None: it has no whole one."""
        theirs = peer.host.memory.get(self.effect.rank) if peer is not None else None
        place = theirs.find(self.effect.iteration) if theirs is not None else None
        if theirs is None or place is None:
            return None
        return theirs.chunks(place), theirs.digests(place)
