"""Castor, whose ranks go on without a restart: `Checkpointer.iteration()` around an iteration."""

from __future__ import annotations

from contextlib import AbstractContextManager

from peer_castor import CastorPeer
from workload import train


class CastorInPlace(CastorPeer):
    """Only a lost rank's place is taken by another process, which was ready before."""

    def attempt(self) -> AbstractContextManager[None]:
        return self._checkpointer.iteration()

    def went_back(self) -> int | None:
        return self._checkpointer.done if self._went_back.ask() else None


if __name__ == "__main__":
    train(CastorInPlace)
