"""Whether a script's state was set back in the process that it goes on in."""

from __future__ import annotations


class WentBack:
    """User state that holds nothing: it is told when a checkpoint is loaded, as all of it is."""

    def __init__(self) -> None:
        self._told = False

    def state_dict(self) -> dict[str, object]:
        """See `Stateful`."""
        return {}

    def load_state_dict(self, _: object) -> None:
        """See `Stateful`."""
        self._told = True

    def ask(self) -> bool:
        """Return whether one was loaded since this was asked before."""
        told, self._told = self._told, False
        return told
