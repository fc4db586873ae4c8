"""Checks of who has which agent's name (invariant 19)."""

from __future__ import annotations

from castor_policy.agents.own_report import EXPIRY_S, LEASES_WAITED
from castor_sim.explore.invariants import Violation
from castor_sim.explore.roles import Scene


class Names:
    """Who has which name, by the agents' keys in the store, and whose lease outlives it.

    Args:
        scene: what is looked at.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._holders: dict[str, str] = {}
        self._outlived: set[str] = set()

    def data_lost(self) -> None:
        """Take in that the store has lost who holds which name."""
        self._holders.clear()

    def reported(self, name: str, incarnation: str) -> None:
        """Check that nobody takes the name of an agent that lives, and whose lease does (19).

        Args:
            name: of the agent whose key has changed.
            incarnation: who stands there now; "" if the key is gone.
        """
        before = self._holders.pop(name, "")
        if incarnation:
            self._holders[name] = incarnation
            if before not in ("", incarnation) and self._scene.at(before) is not None:
                raise Violation(19, f"{incarnation} takes the name of {before}")

    def lease_ends_late(self, name: str, late_s: float) -> None:
        """Take in that the store will end the lease of a name's holder `late_s` after its time."""
        lease_s = self._scene.spec.limits.lease_s
        if lease_s + late_s > LEASES_WAITED * lease_s + EXPIRY_S:
            self._outlived.add(name)

    def may_be_refused(self, name: str) -> bool:
        """Whether an agent that comes again may find its name taken.

        By its own lease, which the store ended later than a new life waits, where nobody could
        prove that the earlier life is dead.
        """
        return name in self._outlived
