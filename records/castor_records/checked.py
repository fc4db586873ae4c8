"""How a JSON document is read into a dataclass: what is missing has its default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

_WORDS: Final[Mapping[type, str]] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def checked(
    document: Mapping[str, Any], empty: Any, nullable: Mapping[str, type]
) -> dict[str, Any]:
    """Return the fields that a document gives; keys that are no field are left.

    Args:
        document: as JSON has it.
        empty: the dataclass with all its defaults, which say of which type each field is.
        nullable: the type of each field whose default is None.

    Raises:
        ValueError: naming the key whose value is none of its type.
    """
    found: dict[str, Any] = {}
    for one in fields(empty):
        if one.name in document:
            value, default = document[one.name], getattr(empty, one.name)
            _check(one.name, value, None if default is None else type(default), nullable)
            found[one.name] = tuple(value) if isinstance(default, tuple) else value
    return found


def _check(name: str, value: object, kind: type | None, nullable: Mapping[str, type]) -> None:
    if kind is None and value is None:
        return
    kind = nullable[name] if kind is None else kind
    kind = list if kind is tuple else kind
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name}: expected {_WORDS[kind]}, not {value!r}")
