"""A colour for each agent, so that a person sees at a glance whose line it is."""

from __future__ import annotations

from typing import Final

_COLOURS: Final = (
    "cyan",
    "green",
    "magenta",
    "yellow",
    "blue",
    "bright_cyan",
    "bright_green",
)


class AgentColours:
    """Gives agents colours in the order in which they come."""

    def __init__(self) -> None:
        self._given: dict[str, str] = {}

    def of(self, agent: str) -> str:
        """Return an agent's colour."""
        return self._given.setdefault(agent, _COLOURS[len(self._given) % len(_COLOURS)])
