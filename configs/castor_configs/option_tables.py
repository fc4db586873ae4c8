"""Options of a job as people write them, read from a table of TOML; `written_options` writes one.

The options themselves, with defaults, units, ranges and help, are `castor_policy.job_options`'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, create_model

from castor_configs.plugins import not_one_of
from castor_configs.quantities import parse_bps, parse_bytes, parse_fraction, parse_seconds
from castor_configs.schema import ConfigModel
from castor_configs.written_options import keys_of, names_of
from castor_policy.option import Option, Options, Unit, default_of

_READERS: Final[Mapping[Unit, Callable[[object], object]]] = {
    Unit.SECONDS: parse_seconds,
    Unit.BYTES: parse_bytes,
    Unit.BITS_PER_SECOND: parse_bps,
    Unit.SHARE: parse_fraction,
}


def _same(value: object) -> object:
    return value


def read_value(one: Option, written: object) -> Any:
    """Return an option's value, from what TOML or a command line has for it.

    Raises:
        ValueError: it is none; says what was expected.
    """
    if one.several:
        listed = written if isinstance(written, list) else [written] if written else []
        values = tuple(_read_one(one, each) for each in listed)
        one.check(values)
        return values
    value = _read_one(one, written)
    one.check(value)
    return value


def _read_one(one: Option, written: object) -> Any:
    if one.empty and written == "":
        written = "" if one.unit in (Unit.TEXT, Unit.PATH) else 0
    value = _READERS.get(one.unit, _same)(written)
    names = names_of(one)
    if names and value not in names:
        raise ValueError(not_one_of(str(value), names))
    return value


def fields_of(group: type[Options]) -> dict[str, Any]:
    """Return a group's options as fields of a pydantic model, by their keys."""
    return {
        key: (Annotated[Any, BeforeValidator(partial(read_value, one))], default_of(group, name))
        for key, (name, one) in keys_of(group).items()
    }


def table_of(group: type[Options]) -> type[ConfigModel]:
    """Return the model of a group's table."""
    return create_model(group.__name__, __base__=ConfigModel, **fields_of(group))


def options_from(group: type[Options], table: object) -> Any:
    """Make a group of what a model has read for it.

    Raises:
        OptionError: options of it do not go together.
    """
    return group(**{name: getattr(table, key) for key, (name, _) in keys_of(group).items()})
