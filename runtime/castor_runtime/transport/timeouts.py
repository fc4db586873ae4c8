"""How long one side waits for the other."""

from __future__ import annotations

from dataclasses import dataclass, fields

# A frame must arrive at this rate at least, so that a peer that drips is given up as well.
_SLOWEST_BYTES_PER_S = 1_000_000


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Bounds on waiting; together they bound every call.

    Attributes:
        connect_s: until the TCP connection stands.
        handshake_s: from there until both sides are authenticated.
        silence_s: without a byte, while something is due.
        idle_s: how long a server keeps a connection that asks for nothing.
        patience_s: how long a fetch goes on trying without one new chunk.

    Raises:
        ValueError: one is not above 0.
    """

    connect_s: float = 2.0
    handshake_s: float = 5.0
    silence_s: float = 10.0
    idle_s: float = 30.0
    patience_s: float = 15.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} must be above 0, not {getattr(self, field.name)}")

    def transfer_s(self, size_bytes: int) -> float:
        """Return how long a frame of that size may take once it is due."""
        return self.silence_s + size_bytes / _SLOWEST_BYTES_PER_S
