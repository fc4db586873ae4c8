"""Write a configuration back as TOML, so that a result carries the one it was made with."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping

from pydantic import BaseModel

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def dump_toml(model: BaseModel) -> str:
    """Return the whole of `model`, defaults included, as TOML that loads to an equal value.

    A None is left out, since TOML has none: a field that may be None must default to it.

    Raises:
        ValueError: the model has something that TOML cannot hold, so it would not load as equal.
    """
    data = model.model_dump(mode="json", exclude_none=True, by_alias=True)
    text = table_toml(data)
    again = type(model).model_validate(tomllib.loads(text))
    if again != model:
        raise ValueError(
            f"this {type(model).__name__} cannot be written as TOML: it would load as another value"
        )
    return text


def table_toml(table: Mapping[str, object]) -> str:
    """Return nested tables as TOML.

    Raises:
        ValueError: they have something that TOML cannot hold.
    """
    return "\n".join(_table_lines(table, ())).strip("\n") + "\n"


def _table_lines(table: Mapping[str, object], path: tuple[str, ...]) -> Iterator[str]:
    """Plain values first: in TOML whatever follows a sub-table's header belongs to it."""
    sub_tables = [key for key, value in table.items() if isinstance(value, dict)]
    table_lists = [key for key, value in table.items() if _is_list_of_tables(value)]
    for key, value in table.items():
        if key not in sub_tables and key not in table_lists:
            yield f"{_key(key)} = {_value(value)}"
    for key in sub_tables:
        value = table[key]
        if isinstance(value, dict):
            yield from ("", f"[{_dotted((*path, key))}]", *_table_lines(value, (*path, key)))
    for key in table_lists:
        value = table[key]
        for entry in value if isinstance(value, list) else ():
            yield from ("", f"[[{_dotted((*path, key))}]]", *_table_lines(entry, (*path, key)))


def _is_list_of_tables(value: object) -> bool:
    return isinstance(value, list) and value != [] and all(isinstance(one, dict) for one in value)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON's escapes are TOML's; only DEL is forbidden in TOML and plain in JSON.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list):
        return f"[{', '.join(_value(one) for one in value)}]"
    if isinstance(value, dict):
        inner = ", ".join(f"{_key(key)} = {_value(one)}" for key, one in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    raise ValueError(f"TOML has no way to write {value!r}")


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _value(key)


def _dotted(path: tuple[str, ...]) -> str:
    return ".".join(map(_key, path))
