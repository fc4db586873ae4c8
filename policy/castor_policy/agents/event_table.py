"""Which function takes which event: a machine's events as a table instead of one long branch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

EffectT = TypeVar("EffectT")
MethodT = TypeVar("MethodT", bound=Callable[..., Any])


class EventTable(Generic[EffectT]):
    """Registers a machine's methods by the type of the event that each takes.

    A method gets the machine, the event and the time, and returns what is to be done.

    Args:
        before: the table of the class that this one's derives from.
    """

    def __init__(self, before: EventTable[EffectT] | None = None) -> None:
        # By name, so that a subclass or a test may have its own.
        self._takes: dict[type, str] = {} if before is None else dict(before._takes)
        self._answers: set[type] = set() if before is None else set(before._answers)

    def on(self, *events: type, answer: bool = False) -> Callable[[MethodT], MethodT]:
        """Have a method take events of these types.

        Args:
            events: their types.
            answer: they answer what was asked in a generation: see `is_answer`.
        """

        def register(method: MethodT) -> MethodT:
            self._takes.update(dict.fromkeys(events, method.__name__))
            self._answers.update(events if answer else ())
            return method

        return register

    def is_answer(self, event: object) -> bool:
        """Whether an event that comes from an earlier generation is out of date."""
        return type(event) in self._answers

    def take(self, machine: object, event: object, now_s: float) -> list[EffectT]:
        """Have the machine's method for this event take it."""
        take: Callable[[object, float], list[EffectT]]
        take = getattr(machine, self._takes[type(event)])
        return take(event, now_s)

    def events(self) -> frozenset[type]:
        """Return the types of all events that are taken."""
        return frozenset(self._takes)
