"""The form of what agents keep in the store: the job, its plan, and a report of every agent.

Each document is JSON, so that an operator reads it with any etcd client. Unknown keys are an error:
an agent of another version must not act on half a document.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from types import UnionType
from typing import Any, Self, Union, get_args, get_origin, get_type_hints

from castor_policy.option import Options, options_of


class Document:
    """JSON both ways for a frozen dataclass."""

    def to_json(self) -> str:
        """Return the document as one line of JSON with sorted keys."""
        # Not `asdict`, which copies every value to its depth, and reports are written all the time.
        return _WRITES.encode({name: getattr(self, name) for name in _names(type(self))})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is not such a document, or of another version of Castor.
        """
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"a {cls.__name__} that is not JSON ({error}): {text[:200]}") from None
        known = _names(cls)
        if not isinstance(record, dict):
            raise ValueError(f"no {cls.__name__}: {text[:200]}")  # noqa: TRY004 - the text is at fault
        cls._check_version(record)
        if unknown := sorted(record.keys() - known):
            raise ValueError(f"expected a {cls.__name__} of this version, got one with {unknown}")
        try:
            document = cls(**cls._restored(_with_options(cls, record)))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"an incomplete {cls.__name__} ({error!r}): {text[:200]}") from None
        for name, hint in hints_of(cls).items():
            value = getattr(document, name, None)
            # Most fields are plain; a root reads reports all the time.
            is_plain = type(value) is hint and hint in _PLAIN
            if name in known and not is_plain and not fits(value, hint):
                raise ValueError(f"{cls.__name__}.{name} must be {hint}: {text[:200]}")
        return document

    @classmethod
    def _check_version(cls, record: Mapping[str, Any]) -> None:
        """Raise ValueError if the document says that it is of another version."""

    @classmethod
    def _restored(cls, record: dict[str, Any]) -> dict[str, Any]:
        return record


_WRITES = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=asdict)


_NAMES: dict[type, frozenset[str]] = {}
_GROUPS: dict[type, dict[str, type[Options]]] = {}


def _names(cls: type[Document]) -> frozenset[str]:
    if cls not in _NAMES:
        every = fields(cls)  # type: ignore[arg-type]  # every subclass is a dataclass
        _NAMES[cls] = frozenset(item.name for item in every)
    return _NAMES[cls]


def _groups(cls: type[Document]) -> dict[str, type[Options]]:
    """Return the fields that are groups of options."""
    if cls not in _GROUPS:
        _GROUPS[cls] = {
            name: kind
            for name, kind in hints_of(cls).items()
            if isinstance(kind, type) and issubclass(kind, Options)
        }
    return _GROUPS[cls]


def _with_options(cls: type[Document], record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was read with its groups of options, each with all of its options and no more."""
    found = dict(record)
    for name, kind in _groups(cls).items():
        if name in found:
            group, known = found[name], options_of(kind).keys()
            if not isinstance(group, dict) or group.keys() != known:
                raise ValueError(f"expected {name} of this version, with {sorted(known)}")
            try:
                found[name] = kind(**_with_tuples(kind, group))
            except ValueError as error:
                raise ValueError(f"{name}.{error}") from None
    return found


def _with_tuples(kind: type[Options], group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group's values with a tuple where JSON has a list."""
    several = {name for name, one in options_of(kind).items() if one.several}
    return {
        name: tuple(value) if name in several and isinstance(value, list) else value
        for name, value in group.items()
    }


def int_rows(rows: Any) -> tuple[tuple[int, ...], ...]:
    """Return rows of numbers, as JSON has them, as a document has them."""
    return tuple(tuple(row) for row in rows)


_PLAIN = (str, int, bool, float)


def fits(value: object, hint: Any) -> bool:
    """Whether a value is of a field's type; what is read from JSON may be of any."""
    kind, of = get_origin(hint), get_args(hint)
    if kind is tuple:
        return isinstance(value, tuple) and all(fits(item, of[0]) for item in value)
    if kind is Mapping:
        return isinstance(value, Mapping) and all(
            fits(key, of[0]) and fits(item, of[1]) for key, item in value.items()
        )
    if kind in (Union, UnionType):
        return any(fits(value, one) for one in of)
    if hint in (float, int):
        numbers = (int, float) if hint is float else int
        return isinstance(value, numbers) and not isinstance(value, bool)
    if not isinstance(hint, type) or not isinstance(value, hint):
        return not isinstance(hint, type)
    return not is_dataclass(value) or all(
        fits(getattr(value, name), kind) for name, kind in hints_of(hint).items()
    )


_HINTS: dict[type, dict[str, Any]] = {}  # they are read from source text, which takes long


def hints_of(kind: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields, by name."""
    if kind not in _HINTS:
        _HINTS[kind] = get_type_hints(kind)
    return _HINTS[kind]
