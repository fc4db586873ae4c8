"""Options of a job as people write them: by what keys and names, and with which units.

Imports no pydantic, as every command's help is made with it; `option_tables` reads what is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from castor_configs.schemes import SCHEMES
from castor_configs.written_quantities import written_bps, written_bytes, written_seconds
from castor_policy.option import Option, Options, Unit, key_of, options_of

_PLUGINS: Final[Mapping[str, Mapping[str, object]]] = {"schemes": SCHEMES}

_WRITERS: Final[Mapping[Unit, Callable[[Any], object]]] = {
    Unit.SECONDS: written_seconds,
    Unit.BYTES: written_bytes,
    Unit.BITS_PER_SECOND: written_bps,
}


def names_of(one: Option) -> tuple[str, ...]:
    """Return the names that an option chooses among, those from outside too; () for any value."""
    outside = _PLUGINS.get(one.plugins, {})
    return tuple(dict.fromkeys((*one.names, *outside)))


def written_value(one: Option, value: Any) -> Any:
    """Return what TOML has for a value, with its unit; `read_value` reads it as equal."""
    if one.several:
        return list(value)
    written = _WRITERS.get(one.unit)
    return value if not value or written is None else written(value)


def keys_of(group: type[Options]) -> dict[str, tuple[str, Option]]:
    """Return a group's options by their keys: field name and option."""
    return {key_of(name, one): (name, one) for name, one in options_of(group).items()}


def written_table(group: Options) -> dict[str, Any]:
    """Return a group as a table of TOML, by its keys."""
    found = keys_of(type(group)).items()
    return {key: written_value(one, getattr(group, name)) for key, (name, one) in found}
