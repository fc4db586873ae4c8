"""Writes the journal of one life of an agent: what it took in, and what it did upon it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Protocol

from castor_policy.agents.effects import RootEffect, WorkerEffect
from castor_policy.agents.events import Tick
from castor_policy.agents.life import ROOT, WORKER, AgentLife, Taken
from castor_policy.journal.lines import Header, ReportChanges, header_record, packed
from castor_policy.journal.values import Json, encode
from castor_policy.version import __version__

TICKS_KEPT: Final = 240
"""So many ticks are kept back at most before they are written: a minute of them."""


class Sink(Protocol):
    """Where the lines go."""

    @property
    def is_full(self) -> bool:
        """Whether it is to begin anew."""

    def append(self, line: str) -> None:
        """Take a line, without its end."""

    def begin_anew(self, line: str) -> None:
        """Put what came before away, and begin with this line."""


class Recorder:
    """The `castor_policy.agents.life.Journal` of one life.

    Nothing is written before the life has taken something in: until then its name may be another's.

    Args:
        sink: where the lines go.
        time_ns: gives CLOCK_REALTIME.
    """

    def __init__(self, sink: Sink, time_ns: Callable[[], int]) -> None:
        self._sink = sink
        self._time_ns = time_ns
        self._header: Header | None = None
        self._has_begun = False
        self._changes = ReportChanges()
        self._ticks: dict[str, list[Taken]] = {WORKER: [], ROOT: []}

    def begin(self, life: AgentLife) -> None:
        """Take in a life that begins."""
        worker = life.worker
        report = worker.report
        self._header = Header(
            castor=__version__,
            time_ns=self._time_ns(),
            spec=replace(worker.spec, arguments=(), credentials=""),
            agent=report.agent,
            incarnation=report.incarnation,
            address=report.address,
            standby=report.standby,
            left={int(rank): held for rank, held in report.holdings.items()},
            left_generation=report.left_generation,
            now_s=worker.renewed_s,
        )

    def took(
        self,
        life: AgentLife,
        taken: Taken,
        outcome: Sequence[WorkerEffect | RootEffect] | Exception,
    ) -> None:
        """Take in an event, and the effects or the error that it led to."""
        kept = self._ticks[taken.by]
        if isinstance(taken.event, Tick) and not isinstance(outcome, Exception) and not outcome:
            kept.append(taken)
            if len(kept) < TICKS_KEPT:
                return
            self._write_ticks(taken.by)
        else:
            self._write_ticks(taken.by)
            self._write(self._record(taken, outcome))
        if self._sink.is_full:
            self._begin_anew(life)

    def write_failed(self, _: AgentLife) -> None:
        """Take in that the root has learnt that its write was not carried out."""
        self._write_ticks(ROOT)
        self._write({"by": ROOT, "write_failed": True})

    def flush(self) -> None:
        """Write what was kept back."""
        self._write_ticks(WORKER)
        self._write_ticks(ROOT)

    def _record(
        self, taken: Taken, outcome: Sequence[WorkerEffect | RootEffect] | Exception
    ) -> Json:
        def of(value: object) -> Json:
            return self._changes.compact(taken.by, encode(value))

        record = {"by": taken.by, "now_s": taken.now_s}
        if taken.at_s is not None:
            record["at_s"] = taken.at_s
        record["event"] = of(taken.event)
        if taken.tenure is not None:
            record["tenure"] = of(taken.tenure)
        if isinstance(outcome, Exception):
            return record | {"raised": said(outcome)}
        return record | {"effects": [of(effect) for effect in outcome]}

    def _write_ticks(self, by: str) -> None:
        ticks = self._ticks[by]
        if not ticks:
            return
        self._ticks[by] = []
        record = {"by": by, "ticks": packed([one.now_s for one in ticks])}
        at_s = packed([one.at_s for one in ticks])
        self._write(record if at_s is None else record | {"at_s": at_s})

    def _begin_anew(self, life: AgentLife) -> None:
        assert self._header is not None, "it has begun"
        self.flush()
        header = replace(
            self._header,
            time_ns=self._time_ns(),
            worker=encode(life.worker),
            root=None if life.root is None else encode(life.root),
        )
        self._changes = ReportChanges()
        self._sink.begin_anew(_line(header_record(header)))

    def _write(self, record: Json) -> None:
        if not self._has_begun:
            assert self._header is not None, "a life begins before it takes anything in"
            self._has_begun = True
            self._sink.append(_line(header_record(self._header)))
        self._sink.append(_line(record))


def said(error: Exception) -> str:
    """Return an error as a journal has it."""
    return f"{type(error).__name__}: {error}"


def _line(record: Json) -> str:
    return json.dumps(record, separators=(",", ":"), allow_nan=False)
