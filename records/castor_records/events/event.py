"""What every event has, and an entry of a log: an event with its time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, Self, TypeVar

from castor_records.events.fields import Value, specs_of

SCHEMA: Final = 1
"""Goes up when a field changes its meaning or disappears, not when one is added."""


class Event:
    """Something that happened, of one kind: the dataclasses derived from this say what.

    A field that is None is not in the log, unless `nulls` names it.

    Raises:
        ValueError: a field holds what its annotation does not allow.
    """

    __slots__ = ()
    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[Event]]] = {}
    """Every kind by its name."""

    def __init_subclass__(cls) -> None:
        # A dataclass with slots is made twice; the second is the one that counts.
        cls.kinds[cls.kind] = cls

    def __post_init__(self) -> None:
        for spec in specs_of(type(self)):
            value = getattr(self, spec.name)
            if not spec.accepts(value):
                raise ValueError(
                    f"{self.kind}.{spec.name}: expected {spec.expected}, not {value!r}"
                )
        self.check()

    def check(self) -> None:
        """Check what is more than a matter of one field's type.

        Raises:
            ValueError: the event cannot be.
        """

    def nulls(self) -> tuple[str, ...]:
        """Return the fields that are in the log even if they are None."""
        return ()

    def fields(self) -> dict[str, Value]:
        """Return what a line says beside schema, time and kind."""
        told = {spec.name: getattr(self, spec.name) for spec in specs_of(type(self))}
        nulls = self.nulls()
        return {name: v for name, v in told.items() if v is not None or name in nulls}

    @classmethod
    def of_fields(cls, found: Mapping[str, Any]) -> Self:
        """Return the event that the fields of a line say; fields that it does not know are left.

        Raises:
            ValueError: a field is missing, or holds what it may not.
        """
        taken: dict[str, Any] = {}
        for spec in specs_of(cls):
            if spec.name not in found:
                if not spec.is_optional:
                    raise ValueError(f"{cls.kind}.{spec.name}: missing: expected {spec.expected}")
                continue
            value = found[spec.name]
            taken[spec.name] = tuple(value) if spec.is_tuple and isinstance(value, list) else value
        return cls(**taken)


E_co = TypeVar("E_co", bound=Event, covariant=True)
E = TypeVar("E", bound=Event)


@dataclass(frozen=True, slots=True)
class Entry(Generic[E_co]):
    """An event in a log, `time_ns` after the start of the run."""

    time_ns: int
    event: E_co

    def to_line(self) -> str:
        """Return the entry as one line of JSON, without the line's end."""
        record = {"schema": SCHEMA, "time_ns": self.time_ns, "kind": self.event.kind}
        return json.dumps(record | self.event.fields(), separators=(",", ":"))


def of_kind(entries: Iterable[Entry[Event]], kind: type[E]) -> Iterator[Entry[E]]:
    """Yield the entries of one kind."""
    for entry in entries:
        if isinstance(entry.event, kind):
            yield entry  # type: ignore[misc]  # its event is of the kind, as was just seen


def generation_of(event: Event) -> int | None:
    """Return the attempt at running all trainers that an event belongs to, if it is of one."""
    found: int | None = getattr(event, "generation", None)
    return found


def rank_of(event: Event) -> int | None:
    """Return the rank that an event belongs to, if it is of one."""
    found: int | None = getattr(event, "rank", None)
    return found


def machine_of(event: Event) -> int | None:
    """Return the machine that an event speaks of, if it speaks of one."""
    found: int | None = getattr(event, "machine", None)
    return found


def agent_of(event: Event) -> str | None:
    """Return the agent that an event speaks of, if it speaks of one."""
    found: str | None = getattr(event, "agent", None)
    return found
