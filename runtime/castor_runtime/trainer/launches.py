"""Who launches the rounds of a checkpoint, and when: by time, or in one order on all ranks.

A round of span k may go once k collectives of all ranks are over (`span_profile`). Two ways to see
to it, by what carries the rounds:

- `ByTime`: the exchange's thread launches it when that is so on this rank (`idle_spans.Gate`).
  Ranks come to it at different points of their programs, which is all one to what the CPU sends.
- `ByPosition`: the thread that trains launches it, directly after it has called the k-th collective
  of all ranks since the checkpoint's begin; those of span 0 at the hand-over; what is left, because
  an iteration has called fewer than the schedule knows, before the update. That is for NCCL, which
  asks for one order of launches on all ranks (`nccl_order`).

All ranks have the same order by position, because nothing that decides it differs between them: the
spans of the rounds are reckoned from numbers that all ranks have agreed on (`Traffic.round_spans`),
all call the same collectives of all ranks in the same order (else training itself would hang), and
whether a round is launched at a point never depends on what has arrived by then. Collectives of
some ranks only do not count. The thread that trains waits at the hand-over until the exchange of
its own rank is prepared: for that no other rank's launch is needed that comes later in the order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from castor_runtime.trainer.idle_spans import LOOK_EVERY_S, Gate

_ALL = 1 << 62
"""A position behind all others."""


class Launches(Protocol):
    """The gate of rounds. The first four are called by the thread that trains."""

    def expect(self) -> None:
        """Begin a checkpoint, which is about to be handed over."""
        ...

    def handed_over(self) -> None:
        """Let rounds go that wait for no collective."""
        ...

    def passed(self, work: Any) -> None:
        """Hear that a collective of all ranks was called; `work`: its handle, None if awaited."""
        ...

    def let_all_go(self) -> None:
        """Let all rounds go that are left: no more collectives come before the update."""
        ...

    def begin(self, spans: Sequence[int], launch: Callable[[int], None]) -> None:
        """Have `launch` called once for each round, in their order; by the exchange's thread.

        Args:
            spans: of each round; they never fall.
            launch: takes the round's index.
        """
        ...

    def is_due(self, index: int) -> bool:
        """Return whether `wait` for that round would return at once; by the exchange's thread."""
        ...

    def wait(self, index: int) -> None:
        """Return once round `index` is launched; by the exchange's thread, in their order.

        Raises:
            RuntimeError: launching failed.
        """
        ...

    def fail(self) -> None:
        """Hear that the exchange has failed: nobody may wait for it."""
        ...


class ByTime:
    """Launches in the exchange's thread, when a round's span has begun here.

    Args:
        gate: knows which has; it is opened and closed by others.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._spans: Sequence[int] = ()
        self._launch: Callable[[int], None] = lambda _index: None

    def expect(self) -> None:
        """Nothing to do, as in what follows: the gate knows."""

    def handed_over(self) -> None:
        """Nothing to do."""

    def passed(self, work: Any) -> None:
        """Nothing to do."""

    def let_all_go(self) -> None:
        """Nothing to do."""

    def begin(self, spans: Sequence[int], launch: Callable[[int], None]) -> None:
        """See `Launches.begin`."""
        self._spans, self._launch = spans, launch

    def is_due(self, index: int) -> bool:
        """See `Launches.is_due`."""
        return self._gate.has_begun(self._spans[index])

    def wait(self, index: int) -> None:
        """See `Launches.wait`."""
        self._gate.wait(self._spans[index])
        self._launch(index)

    def fail(self) -> None:
        """Nothing to do."""


class ByPosition:
    """Launches in the thread that trains, at points that all ranks pass in one order.

    Args:
        gate: is looked at while the exchange waits, so that it knows when training communicates.
        follow: is called before rounds are launched at a point, with the collective's handle: they
            come after it on the accelerator too.
    """

    def __init__(self, gate: Gate, follow: Callable[[Any], None]) -> None:
        self._gate = gate
        self._follow = follow
        self._launching = threading.Lock()
        """Training may call collectives in several threads, one after the other."""
        self._changed = threading.Condition()
        self._spans: Sequence[int] | None = ()
        self._launch: Callable[[int], None] = lambda _index: None
        self._launched = 0
        self._collectives = 0
        self._failed = False
        self._failure: BaseException | None = None

    def expect(self) -> None:
        """See `Launches.expect`."""
        with self._changed:
            self._spans = None
            self._launched = self._collectives = 0

    def handed_over(self) -> None:
        """See `Launches.handed_over`."""
        self._reach(0, None)

    def passed(self, work: Any) -> None:
        """See `Launches.passed`."""
        self._collectives += 1
        self._reach(self._collectives, work)

    def let_all_go(self) -> None:
        """See `Launches.let_all_go`."""
        self._reach(_ALL, None)

    def begin(self, spans: Sequence[int], launch: Callable[[int], None]) -> None:
        """See `Launches.begin`."""
        with self._changed:
            self._spans, self._launch = spans, launch
            self._changed.notify_all()

    def is_due(self, index: int) -> bool:
        """See `Launches.is_due`."""
        return self._launched > index

    def wait(self, index: int) -> None:
        """See `Launches.wait`."""
        while True:
            self._gate.look()
            with self._changed:
                self._changed.wait_for(
                    lambda: self._launched > index or self._failure is not None, LOOK_EVERY_S
                )
                if self._failure is not None:
                    raise RuntimeError(
                        f"a round could not be launched: {self._failure}"
                    ) from self._failure
                if self._launched > index:
                    return

    def fail(self) -> None:
        """See `Launches.fail`; the thread that trains hears of it where it waits."""
        with self._changed:
            self._failed = True
            self._changed.notify_all()

    def _reach(self, position: int, work: Any) -> None:
        """Launch the rounds up to a position, which all ranks come to at the same point."""
        with self._launching:
            spans = self._prepared()
            is_first = True
            while self._launched < len(spans) and spans[self._launched] <= position:
                try:
                    if is_first:
                        self._follow(work)
                        is_first = False
                    self._launch(self._launched)
                except BaseException as error:  # noqa: BLE001 - raised in the exchange's thread
                    with self._changed:
                        self._failure, self._failed = error, True
                        self._changed.notify_all()
                    return
                with self._changed:
                    self._launched += 1
                    self._changed.notify_all()

    def _prepared(self) -> Sequence[int]:
        """Return the spans of the rounds, once the exchange is prepared; none if it has failed."""
        with self._changed:
            self._changed.wait_for(lambda: self._spans is not None or self._failed)
            return () if self._failed or self._spans is None else self._spans
