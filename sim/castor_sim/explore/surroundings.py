"""What surrounds agents and trainers in an explored world."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from castor_policy.agents.life import Journal
from castor_policy.agents.own_report import Sign
from castor_sim.explore.monitor import Monitor
from castor_sim.explore.network import Network
from castor_sim.explore.roles import Agent, Group, Host, Scene
from castor_sim.explore.storage_model import Storage
from castor_sim.explore.store_server import StoreServer

GroupKey = tuple[int, str]
"""(generation, rendezvous): trainers meet who were given the same."""


class Surroundings(Scene, Protocol):
    """Time, store, storage, network, and who watches; `world.World` is all of it."""

    meetings: int
    """How many rendezvous have been offered."""

    @property
    def seed(self) -> int:
        """Of every delay and chance."""

    @property
    def iterations(self) -> int:
        """Of the job."""

    @property
    def in_place(self) -> bool:
        """Whether the job's script goes on without a restart where another rank is lost."""

    @property
    def run_number(self) -> int:
        """Which run this is, in `truth`."""

    @property
    def monitor(self) -> Monitor:
        """Who watches."""

    @property
    def network(self) -> Network:
        """Between machines and the store."""

    @property
    def store(self) -> StoreServer:
        """The job's store."""

    @property
    def storage(self) -> Storage:
        """The persistent tier."""

    def after(self, delay_s: float, what: Callable[..., None], *arguments: Any) -> None:
        """Call back after a time."""

    def note(self, text: str) -> None:
        """Write down what happened, if somebody wants to know."""

    def journal(self, agent: str, incarnation: str) -> Journal | None:
        """Return what gets all that one life of an agent takes in, if somebody wants it."""

    def start(self, host: Host) -> None:
        """Start an agent on a machine, for the first time or again."""

    def start_twin(self, agent: Agent, *, elsewhere: bool) -> None:
        """Start a second agent of a name, on its machine or on another one."""

    def claimed(self, agent: Agent) -> None:
        """Take in that an agent has its name."""

    def sign_of(self, incarnation: str, asker: Agent) -> Sign:
        """Return what an agent knows of another life of its name."""

    def group(self, key: GroupKey) -> Group:
        """Return the trainers that meet at one place in one generation."""

    def strike_root(self, agent: Agent) -> tuple[float, Callable[[], None]]:
        """Return how late the root's write is to be, and what happens to its agent after it."""
