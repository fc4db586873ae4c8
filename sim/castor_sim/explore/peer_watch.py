"""What an agent's connections to those around it tell: the twin of the runtime's peer links.

The kernel of a machine answers for it: an agent that is paused alone can be reached, one that is
dead is known to be so at once, and a machine that is paused, or cut off in either direction, after
a time without an answer. Packets get lost in bursts, so that now and then one is taken for lost
that is there: a false alarm may cost a swap, and never state.
"""

from __future__ import annotations

import random

from castor_policy.agents.effects import WatchPeers
from castor_policy.agents.events import PeerFound, PeerLost
from castor_policy.agents.neighbours import Neighbour
from castor_sim.explore.roles import Agent
from castor_sim.explore.surroundings import Surroundings

_LOOK_S = (0.05, 0.2)
_BURST = 0.001  # of the looks, that a burst of losses begins
_BURST_S = (0.2, 2.0)


class PeerWatch:
    """The connections of one life of an agent.

    Args:
        world: around it.
        agent: whose; told what is seen by its `see`.
    """

    def __init__(self, world: Surroundings, agent: Agent) -> None:
        self._world = world
        self._agent = agent
        # Of its own, so that the schedule of all else stays what it is without these looks.
        self._draw = random.Random(f"{world.seed} {agent.incarnation} peers")  # noqa: S311 - no secret
        self._wanted = WatchPeers((), 0.0)
        self._silent_since_s: dict[str, float] = {}
        self._bursts_until_s: dict[str, float] = {}
        self._lost: set[str] = set()
        self._looking = False

    def watch(self, wanted: WatchPeers) -> None:
        """Keep connections to these from now on."""
        kept = {one.incarnation for one in wanted.peers}
        for gone in [one for one in self._wanted.peers if one.incarnation in self._lost - kept]:
            self._is_missed_no_more(gone)
        self._wanted = wanted
        self._silent_since_s = {n: s for n, s in self._silent_since_s.items() if n in kept}
        if wanted.peers and not self._looking:
            self._looking = True
            self._look_later()

    def _look_later(self) -> None:
        self._agent.later(self._draw.uniform(*_LOOK_S), self._look)

    def _look(self) -> None:
        self._looking = bool(self._wanted.peers)
        for peer in self._wanted.peers:
            self._look_at(peer)
        if self._looking:
            self._look_later()

    def _look_at(self, peer: Neighbour) -> None:
        name, now_s = peer.incarnation, self._agent.local_s()
        answers, is_dead = self._reach(peer)
        if answers:
            self._silent_since_s.pop(name, None)
            if name in self._lost:
                self._is_missed_no_more(peer)
                self._agent.see(PeerFound(name))
            return
        silent_s = now_s - self._silent_since_s.setdefault(name, now_s)
        if name not in self._lost and (is_dead or silent_s >= self._wanted.within_s):
            self._lost.add(name)
            self._world.monitor.blame.missed(peer.agent, self._agent.name)
            self._agent.see(PeerLost(name))

    def _is_missed_no_more(self, peer: Neighbour) -> None:
        self._lost.discard(peer.incarnation)
        self._world.monitor.blame.misses_no_more(peer.agent, self._agent.name)

    def _reach(self, peer: Neighbour) -> tuple[bool, bool]:
        """Return whether it answers; and, if not, whether its host says that it is dead."""
        now_s, draw = self._world.now_s, self._draw
        if draw.random() < _BURST:
            self._bursts_until_s[peer.incarnation] = now_s + draw.uniform(*_BURST_S)
        if now_s < self._bursts_until_s.get(peer.incarnation, 0.0):
            return False, False
        life = self._world.at(peer.address)
        if not self._world.network.connects(self._agent.name, peer.agent):
            return False, False
        if life is None:
            return False, True
        return not life.host.paused, False
