"""Memory is saved: the own replica has one buffer, and is filled after the remote ones.

What is sent comes straight out of live state, and so do the digests that go with it, by way of a
buffer of one chunk. Once all ranks have agreed that every remote replica of the iteration is there,
the own one is written over, chunk by chunk out of the same live state, and held against those very
digests. Until then updates wait. See docs/invariants.md, "Less memory".
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from castor_runtime.arena import Replica, chunk_digest
from castor_runtime.arena.own_turn import OwnTurn
from castor_runtime.state.sections import Section
from castor_runtime.trainer.device import Device
from castor_runtime.trainer.exchange import Digested

_POLL_S = 0.002

_HEARD_S = 5.0
"""Whose agreement failed waits so long for another rank of its machine to hear of it. Its agent,
which has to stop its trainers then, says sooner than that whether one has."""


class LivePart(Digested):
    """A part that is read out of live state.

    Args:
        device: holds the live state.
        size_bytes: of the part.
        through: CPU memory for a chunk.
    """

    def __init__(self, device: Device, size_bytes: int, through: torch.Tensor) -> None:
        super().__init__(size_bytes, through.numel())
        self._device = device
        self._through = through

    def end(self, meta: bytes | None) -> None:
        """Nothing: it fills no buffer."""

    def digest(self, start: int, end: int) -> int:
        """See `Digested.digest`."""
        chunk = self._through[: end - start]
        self._device.read(start, chunk)
        return chunk_digest(chunk.numpy().data)


class Agreement:
    """A collective under way, that one may wait for beside other things.

    Args:
        work: of it.
    """

    def __init__(self, work: Any) -> None:
        self._work = work
        self._done = threading.Event()
        self._failure: BaseException | None = None
        threading.Thread(target=self._wait, name="castor-agreement", daemon=True).start()

    def wait(self, limit_s: float | None = None) -> bool:
        """Return whether it is over, after so long at most.

        Raises:
            RuntimeError: it failed: a peer is gone.
        """
        over = self._done.wait(limit_s)
        if self._failure is not None:
            raise RuntimeError(str(self._failure)) from self._failure
        return over

    def _wait(self) -> None:
        try:
            self._work.wait()
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._failure = error
        self._done.set()


class OwnLast:
    """Turns the own replica to one iteration after the other.

    Args:
        replica: the own one, of one buffer.
        device: reads live state.
        turn: this rank's, among those of its machine.
        gives_up: says whether the trainer has come to its end: then nothing is waited for.
    """

    def __init__(
        self, replica: Replica, device: Device, turn: OwnTurn, gives_up: Callable[[], bool]
    ) -> None:
        self._replica = replica
        self._device = device
        self._turn = turn
        self._gives_up = gives_up
        self.through = torch.empty(replica.chunk_bytes, dtype=torch.uint8)

    def begin(self, sections: Sequence[Section], live: Sequence[torch.Tensor | None]) -> LivePart:
        """Have the device send out of `live`; return what digests it."""
        self._device.hold_live(sections, live, self._replica.data_bytes)
        return LivePart(self._device, self._replica.data_bytes, self.through)

    def wait_agreed(self, agreement: Agreement, iteration: int) -> bool:
        """Wait until the remote replicas of `iteration` are agreed on.

        Returns:
            Whether the agreement told it; False: another rank of this machine has, or its agent.

        Raises:
            RuntimeError: the agreement failed, and nobody here has heard of it.
        """
        end_s = None
        while not self._turn.is_begun(iteration):
            if self._gives_up():
                raise RuntimeError("it is killed")
            try:
                if agreement.wait(_POLL_S):
                    return True
            except RuntimeError:
                now_s = time.monotonic()
                end_s = now_s + _HEARD_S if end_s is None else end_s
                if now_s >= end_s or self._turn.is_refused(iteration):
                    raise
                time.sleep(_POLL_S)
        return False

    def turn(self, part: LivePart, meta: bytes, iteration: int, generation: int) -> bool:
        """Write over the own replica with what is agreed on; False if live state has changed.

        Raises:
            RuntimeError: the agent ends this trainer, and its replica is to stay as it is.
        """
        if not self._turn.begin(iteration, gives_up=self._gives_up):
            raise RuntimeError(f"its agent ends it before its own replica of {iteration} is made")
        writing = self._replica.begin(iteration, generation, iteration)
        data = torch.frombuffer(writing.data, dtype=torch.uint8)
        for index, expected in enumerate(part.digests):
            if self._gives_up():
                raise RuntimeError("it is killed")
            with writing.chunk(index) as chunk:
                start = index * writing.chunk_bytes
                self._device.read(start, data[start : start + chunk.nbytes])
                if chunk_digest(chunk) != expected:
                    writing.abandon()
                    return False
        writing.commit(meta, part.digests)
        return True
