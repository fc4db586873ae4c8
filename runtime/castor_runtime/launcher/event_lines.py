"""What the screen says of each event: one line, and its colour."""

from __future__ import annotations

from functools import singledispatch
from typing import Final

from castor_records.events import failures as f
from castor_records.events import storing as s
from castor_records.events import training as t
from castor_records.events.event import Event
from castor_runtime.launcher.odd_ranks import not_finite_words, slow_words

ALWAYS: Final[tuple[type[Event], ...]] = (f.Failed, f.Detected, f.SetAside)
"""Said even where little is to be said."""

_Line = tuple[str, str]
_LENGTH: Final = 140


def line_of(event: Event) -> _Line | None:
    """Return the line, cut to what a terminal has room for, and its style; None: not shown."""
    found = _line(event)
    return None if found is None else (_shortened(found[0]), found[1])


def _shortened(text: str) -> str:
    """Return the first line of `text`, cut: the rest of a long error is in its log."""
    line = text.partition("\n")[0]
    return line if len(line) <= _LENGTH else line[: _LENGTH - 3] + "..."


@singledispatch
def _line(event: Event) -> _Line | None:  # noqa: ARG001 - those below say which are shown
    return None


@_line.register
def _(event: f.RunStarted) -> _Line:
    return f"{event.machines} machines, {event.ranks} ranks, {event.replicas} replicas", "bold"


@_line.register
def _(event: f.Failed) -> _Line:
    struck = f"{event.target} ({event.failure}), iteration {event.iteration}"
    return f"FAILURE injected: {struck}", "red"


@_line.register
def _(event: f.Detected) -> _Line:
    who = "" if event.machine is None else f"machine {event.machine} ({event.agent}): "
    return f"detected: {who}{event.cause}", "yellow"


@_line.register
def _(event: t.Slow) -> _Line:
    return slow_words(event), "" if event.over else "yellow"


@_line.register
def _(event: t.NotFinite) -> _Line:
    return not_finite_words(event), "yellow"


@_line.register
def _(event: f.Planned) -> _Line:
    loads = f"loads iteration {event.iteration} from {event.tier}"
    return f"plan: generation {event.generation} {loads}", "cyan"


@_line.register
def _(event: f.SetAside) -> _Line:
    does = f"is set aside: it {event.reason}"
    if event.stays:
        does = f"stays although it {event.reason}; no standby is free to take its place"
    return f"machine {event.machine}: {event.agent} {does}", "yellow"


@_line.register
def _(event: f.Drained) -> _Line:
    given = f"its place is given away at iteration {event.iteration}"
    return f"machine {event.machine} ({event.agent}) is drained: {given}", ""


@_line.register
def _(event: f.Replaced) -> _Line:
    return f"machine {event.machine} is now filled by {event.agent}", "cyan"


@_line.register
def _(event: f.Degraded) -> _Line:
    return f"machine {event.machine} trains while its replicas are still fetched", "yellow"


@_line.register
def _(event: f.Redundant) -> _Line:
    return f"machine {event.machine} holds all its replicas", ""


@_line.register
def _(event: f.Corrupt) -> _Line:
    return f"CORRUPT: part of rank {event.rank}, iteration {event.iteration}", "red"


@_line.register
def _(event: s.RootElected) -> _Line:
    return f"{event.agent} is root, term {event.term}", ""


@_line.register
def _(event: s.StoreLost) -> _Line:
    return f"{event.agent} does not reach the store; training goes on", "yellow"


@_line.register
def _(event: s.StoreBack) -> _Line:
    return f"{event.agent} reaches the store again", ""


@_line.register
def _(event: s.StoreTrouble) -> _Line:
    return f"{event.agent}: store, {event.about}: {event.reason}", "yellow"


@_line.register
def _(event: s.Persisted) -> _Line:
    where = f": {event.where}" if event.where else ""
    return f"iteration {event.iteration} is in persistent storage{where}", ""


@_line.register
def _(event: s.PersistFailed) -> _Line:
    share = f"machine {event.machine}, iteration {event.iteration}"
    return f"NOT PERSISTED: {share}: {event.cause}", "yellow"


@_line.register
def _(event: s.PersistLeftOut) -> _Line:
    where = f" {event.where}" if event.where else ""
    return f"iteration {event.iteration} is left out: storage{where} is busy yet", "yellow"
