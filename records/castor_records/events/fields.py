"""What a field of an event may hold: the types that its annotation names, and their check.

An annotation is one of the aliases below, `bool`, `str`, a tuple of one of them, or one of those
"or None". A unit is part of the type, so that the reference in docs/formats.md can name it.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, TypeAlias, Union, get_args, get_origin, get_type_hints

Value: TypeAlias = str | int | float | bool | tuple[int, ...] | tuple[str, ...] | None
"""What the fields of a line hold; JSON has lists for tuples."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What a number counts.

    Attributes:
        name: as the reference has it; "" for a plain count.
        is_measure: it is finite and 0 or more.
    """

    name: str
    is_measure: bool = False


Count: TypeAlias = Annotated[int, Unit("")]
"""A number of things, or the number that something has; -1 where there is none."""
Bytes: TypeAlias = Annotated[int, Unit("bytes")]
Nanoseconds: TypeAlias = Annotated[int, Unit("ns")]
BitsPerSecond: TypeAlias = Annotated[int, Unit("bit/s")]
Seconds: TypeAlias = Annotated[float, Unit("s", is_measure=True)]
Share: TypeAlias = Annotated[float, Unit("", is_measure=True)]
"""Of something, or one thing over another."""
Number: TypeAlias = Annotated[float, Unit("")]
"""Whatever the user's program computed: it may be infinite, or no number."""


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One field of a kind of event.

    Attributes:
        name: of it.
        words: its type and unit, for people.
        is_optional: a line may do without it.
        is_tuple: JSON has a list for it.
        accepts: whether a value is one of its own.
        expected: what `accepts` accepts, in words.
    """

    name: str
    words: str
    is_optional: bool
    is_tuple: bool
    accepts: Callable[[object], bool]
    expected: str


_KNOWN: dict[type, tuple[FieldSpec, ...]] = {}


def specs_of(kind: type) -> tuple[FieldSpec, ...]:
    """Return the fields of a kind of event, in the order in which a line has them."""
    if kind not in _KNOWN:
        hints = get_type_hints(kind, include_extras=True)
        _KNOWN[kind] = tuple(
            _spec(one.name, hints[one.name], is_optional=one.default is not MISSING)
            for one in fields(kind)
        )
    return _KNOWN[kind]


def _spec(name: str, hint: Any, *, is_optional: bool) -> FieldSpec:
    choices = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    (inner,) = (choice for choice in choices if choice is not types.NoneType)
    may_be_none = len(choices) > 1
    is_tuple = get_origin(inner) is tuple
    accepts, words, expected = _type(get_args(inner)[0] if is_tuple else inner)
    one = accepts
    if is_tuple:
        plain, comma, unit = words.partition(",")
        words, expected = f"list of {plain}s{comma}{unit}", f"a list of {expected}s"

        def accepts(value: object) -> bool:
            return isinstance(value, tuple) and all(map(one, value))

    def accepts_none(value: object) -> bool:
        return value is None or accepts(value)

    if not is_tuple and expected != "true or false":
        expected = f"a {expected}"
    return FieldSpec(
        name, words, is_optional, is_tuple, accepts_none if may_be_none else accepts, expected
    )


def _type(hint: Any) -> tuple[Callable[[object], bool], str, str]:
    """Return the check of one value, the type for people, and what is expected."""
    unit = Unit("")
    if get_origin(hint) is Annotated:
        hint, unit = get_args(hint)
    in_unit = f", {unit.name}" if unit.name else ""
    if hint is bool:
        return (lambda value: isinstance(value, bool)), "true or false", "true or false"
    if hint is str:
        return (lambda value: isinstance(value, str)), "text", "text"
    if hint is int:
        return _is_whole, f"integer{in_unit}", "whole number"
    if unit.is_measure:
        return _is_measure, f"number{in_unit}", "number of 0 or more"
    return _is_number, f"number{in_unit}", "number"


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_measure(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value >= 0
    )
