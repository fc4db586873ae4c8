"""A job's options on the command line: made from their definitions, not written out again."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Annotated, Any, TypeVar

import typer

from castor_configs.errors import InputError
from castor_configs.job import Flag, LaunchOptions, options_by_key
from castor_configs.plugins import and_plugins
from castor_configs.written_options import names_of, written_value
from castor_policy.option import Option, Unit, default_of, flag_of

CommandT = TypeVar("CommandT", bound=Callable[..., None])

_METAVARS: Mapping[Unit, str] = {
    Unit.SECONDS: "TIME",
    Unit.BYTES: "SIZE",
    Unit.BITS_PER_SECOND: "RATE",
    Unit.SHARE: "SHARE",
    Unit.COUNT: "N",
    Unit.RATIO: "X",
    Unit.TEXT: "NAME",
    Unit.PATH: "PATH",
}
_READ_AS_TOML = (Unit.COUNT, Unit.RATIO)
"""Of the others, the text itself is what a file would have."""


def takes_job_flags(*, without: Collection[str] = ()) -> Callable[[CommandT], CommandT]:
    """Give a command an option for each option of a job, in place of its `**flags`.

    Args:
        without: parameters of options that it has no use for.
    """

    def give(command: CommandT) -> CommandT:
        return with_flags(command, [one for one in _parameters() if one.name not in without])

    return give


def with_flags(command: CommandT, flags: Iterable[inspect.Parameter]) -> CommandT:
    """Give a command these options, in place of its `**flags`."""
    signature = inspect.signature(command, eval_str=True)
    own = [one for one in signature.parameters.values() if one.kind != one.VAR_KEYWORD]
    made = signature.replace(parameters=[*own, *flags])
    command.__signature__ = made  # type: ignore[attr-defined]  # what typer reads of a function
    return command


def given_flags(context: typer.Context) -> list[Flag]:
    """Return the options of a job that the command line has."""
    found = []
    for key, _, name, one in options_by_key():
        parameter = _parameter_name(key)
        source = context.get_parameter_source(parameter)
        if source is not None and source.name == "COMMANDLINE":
            found.append(Flag(key, flag_of(name, one), _as_toml(one, context.params[parameter])))
    return found


def _parameters() -> Iterator[inspect.Parameter]:
    for key, group, name, one in options_by_key():
        default = default_of(group, name)
        shown = written_value(one, default)
        is_flag = one.unit == Unit.FLAG
        value = list[str] if one.several else str
        option = typer.Option(
            flag_of(name, one),
            help=_help(one),
            metavar=None if is_flag else one.metavar or _METAVARS[one.unit],
            rich_help_panel="Job" if group is LaunchOptions else f"Job: {key[0]}",
        )
        yield inspect.Parameter(
            _parameter_name(key),
            inspect.Parameter.KEYWORD_ONLY,
            default=default if is_flag else None if one.empty or shown in ("", []) else str(shown),
            annotation=Annotated[bool if is_flag else value | None, option],
        )


def _help(one: Option) -> str:
    try:
        names = names_of(one)
    except InputError:  # of plugins: whoever uses one is told
        names = one.names
    if names:
        return f"{one.help} One of {', '.join(names)}."
    outside = and_plugins(one.plugins).removeprefix(", ") if one.plugins else ""
    return f"{one.help} From outside: {outside}." if outside else one.help


def _parameter_name(key: tuple[str, ...]) -> str:
    return "_".join(key)


def _as_toml(one: Option, written: Any) -> object:
    if one.unit not in _READ_AS_TOML:
        return written
    try:
        return tomllib.loads(f"value = {written}")["value"]
    except ValueError:
        return written
