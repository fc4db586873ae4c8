"""Feeds a journal into the agents' machines as they are in this version, and finds where they part.

What a machine did then and what it does now are compared as JSON, exactly. A life is followed until
its end or its first parting: from there on the two are in different states, and nothing of it means
anything any more.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from castor_policy.agents.events import Tick
from castor_policy.agents.life import ROOT, WORKER, AgentLife
from castor_policy.agents.office import Tenure
from castor_policy.agents.worker import Worker
from castor_policy.journal.lines import (
    EventLine,
    Header,
    Line,
    ReportChanges,
    TickLine,
    WriteFailedLine,
    parse,
)
from castor_policy.journal.recorder import said
from castor_policy.journal.values import Json, decode, encode


class JournalError(ValueError):
    """A journal cannot be read.

    Attributes:
        line: number of the line that is at fault, from 1.
    """

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


@dataclass(frozen=True, slots=True)
class Parting:
    """Where a machine does something else than it did.

    Attributes:
        line: number in the journal.
        by: which machine.
        event: that it takes in; null: that a write failed.
        now_s: the time that it is told.
        then: the effects that it had; an error as one text.
        now: the effects that it has.
    """

    line: int
    by: str
    event: Json
    now_s: float
    then: list[Json]
    now: list[Json]


@dataclass(slots=True)
class Replayed:
    """One life, replayed.

    Attributes:
        header: of it.
        first_line: number of its header.
        last_line: number of the last line of it that was gone through.
        events: how many each machine took in, beside ticks.
        ticks: how many ticks each took in.
        effects: how many each had.
        generations: the ones that the worker had part in, in order.
        terms: of the root, in order.
        parting: where it parts; None: nowhere.
        is_torn: its last line was not written to its end.
        life: the machines as they are then.
    """

    header: Header
    first_line: int
    life: AgentLife
    last_line: int = 0
    events: Counter[str] = field(default_factory=Counter)
    ticks: Counter[str] = field(default_factory=Counter)
    effects: Counter[str] = field(default_factory=Counter)
    generations: list[int] = field(default_factory=list)
    terms: list[int] = field(default_factory=list)
    parting: Parting | None = None
    is_torn: bool = False


class _Life:
    """One life that is being replayed."""

    def __init__(self, header: Header, line: int) -> None:
        self._tenure = Tenure(None, None)
        self.changes = ReportChanges()
        life = AgentLife(_worker(header), lambda: self._tenure, validates=True)
        if header.root is not None:
            life.root = decode(header.root, header.spec)
        self.told = Replayed(header, line, life, last_line=line)

    def follow(self, line: Line, number: int) -> None:
        """Have the machines take in what a line says, unless they have parted already."""
        if self.told.parting is not None:
            return
        self.told.last_line = number
        match line:
            case EventLine():
                self._event(line, number)
            case TickLine(by, now_s, at_s):
                self.told.ticks[by] += len(now_s)
                for tick_s, tick_at_s in zip(now_s, at_s, strict=True):
                    self._compare(number, by, Tick(), tick_s, tick_at_s, [])
            case WriteFailedLine():
                self._write_failed(number)
        self._note()

    def _event(self, line: EventLine, number: int) -> None:
        spec = self.told.header.spec
        event = decode(line.event, spec)
        tenure = decode(line.tenure, spec)
        if isinstance(tenure, Tenure):
            self._tenure = tenure
        then = [line.raised] if line.effects is None else line.effects
        (self.told.ticks if isinstance(event, Tick) else self.told.events)[line.by] += 1
        self.told.effects[line.by] += len(line.effects or ())
        self._compare(number, line.by, event, line.now_s, line.at_s, then)

    def _compare(
        self,
        number: int,
        by: str,
        event: Any,
        now_s: float,
        at_s: float | None,
        then: list[Json],
    ) -> None:
        if self.told.parting is not None:
            return
        life = self.told.life
        if by == WORKER:
            now = _outcome(lambda: life.obey(event, now_s))
        else:
            now = _outcome(lambda: life.decide(event, now_s, at_s))
        if now != then:
            self.told.parting = Parting(number, by, encode(event), now_s, then, now)

    def _write_failed(self, number: int) -> None:
        root = self.told.life.root
        if root is None:
            self.told.parting = Parting(number, ROOT, None, 0.0, ["a root"], ["no root"])
        else:
            root.write_failed()

    def _note(self) -> None:
        told, life = self.told, self.told.life
        if life.worker.generation and life.worker.generation not in told.generations[-1:]:
            told.generations.append(life.worker.generation)
        if life.root is not None and life.root.term not in told.terms[-1:]:
            told.terms.append(life.root.term)


def _worker(header: Header) -> Worker:
    if header.worker is not None:
        worker = decode(header.worker, header.spec)
        if not isinstance(worker, Worker):
            raise ValueError(f"worker: no state of a worker: {str(header.worker)[:100]}")
        return worker
    return Worker(
        header.spec,
        header.agent,
        header.incarnation,
        header.address,
        header.standby,
        header.now_s,
        left=header.left,
        left_generation=header.left_generation,
    )


def _outcome(take: Callable[[], Sequence[Any]]) -> list[Json]:
    try:
        return [encode(effect) for effect in take()]
    except Exception as error:  # noqa: BLE001 - it is what the machine does
        return [said(error)]


def replay(lines: Sequence[str], until: int | None = None) -> Iterator[Replayed]:
    """Replay every life of a journal, in order.

    Args:
        lines: of the file, without their ends.
        until: number of the last line to go through; None: all.

    Raises:
        JournalError: a line cannot be read. That the last line of a life is half a line is no
            error: whoever wrote it was killed.
    """
    life: _Life | None = None
    for number, text in enumerate(lines[:until], start=1):
        if not text.strip():
            continue
        before = life
        try:
            life = _followed(life, text, number)
        except json.JSONDecodeError as error:
            if life is None or not _is_last_of_life(lines, number):
                raise JournalError(number, f"is damaged: no JSON: {error}") from None
            life.told.is_torn = True
        except ValueError as error:
            raise JournalError(number, str(error)) from None
        if before is not None and life is not before:
            yield before.told
    if life is not None:
        yield life.told


def _followed(life: _Life | None, text: str, number: int) -> _Life:
    """Have a life take in a line; return the life that the next line belongs to."""
    line = parse(text, ReportChanges() if life is None else life.changes)
    if isinstance(line, Header):
        return _Life(line, number)
    if life is None:
        raise ValueError("a journal begins with a line that has the field `journal`")
    life.follow(line, number)
    return life


def _is_last_of_life(lines: Sequence[str], number: int) -> bool:
    after = next((text for text in lines[number:] if text.strip()), None)
    return after is None or after.startswith('{"journal":')
