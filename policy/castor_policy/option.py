"""One option of a job: its default, unit, range and help, where its value stands and nowhere else.

A group of options is a frozen dataclass, and each of its fields is an option:

    mu: float = option(0.9, Unit.SHARE, "Share of an idle span that is used.", above=0, most=1)

Whoever reads options from a file or from a command line, shows them, or passes them on walks the
fields: to a new option, a field is all there is. A group is checked where it is made, by whomever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from enum import Enum
from typing import Any, TypeVar

ValueT = TypeVar("ValueT")
OptionsT = TypeVar("OptionsT", bound="Options")

_OPTION = "option"


class Unit(Enum):
    """What an option's value is. Of a quantity it ends the field's name, too: `chunk_bytes`."""

    SECONDS = "s"
    BYTES = "bytes"
    BITS_PER_SECOND = "bps"
    SHARE = "share"
    COUNT = "count"
    RATIO = "ratio"
    TEXT = "text"
    PATH = "path"
    FLAG = "flag"

    @property
    def suffix(self) -> str:
        """The end of a field's name that says this unit; "" for what has none."""
        return f"_{self.value}" if self in _WRITTEN else ""

    @property
    def held_as(self) -> tuple[type, ...]:
        """The types of its values."""
        if self in (Unit.BYTES, Unit.BITS_PER_SECOND, Unit.COUNT):
            return (int,)
        return {Unit.TEXT: (str,), Unit.PATH: (str,), Unit.FLAG: (bool,)}.get(self, (int, float))

    @property
    def written(self) -> str:
        """What follows a number of it."""
        return _WRITTEN.get(self, "")


_WORDS: Mapping[tuple[type, ...], str] = {
    (int,): "a whole number",
    (int, float): "a number",
    (str,): "a text",
    (bool,): "true or false",
}
_WRITTEN = {Unit.SECONDS: " s", Unit.BYTES: " B", Unit.BITS_PER_SECOND: " bit/s"}


class OptionError(ValueError):
    """An option has a value that it cannot have.

    Attributes:
        option: the name of its field.
        message: what was expected.
    """

    def __init__(self, option: str, message: str) -> None:
        super().__init__(f"{option}: {message}")
        self.option, self.message = option, message


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What is known of an option beside its default.

    Attributes:
        unit: of its value.
        help: for people, a sentence.
        flag: its name on the command line, without the dashes; "" for the field's own.
        metavar: what stands for its value there; "" for what its unit says.
        least, above, most: its range, in its unit; `above` is not in it. None: no end.
        multiple_of: it is a whole number of those.
        names: what it may be, where it is one of several names.
        plugins: the kind of plugins whose names it may be, too; whoever knows them checks it.
        empty: 0, or no text, is in its range whatever that is, and says that there is none.
        several: it is a tuple of such values, none of them twice; on the command line it is given
            once for each, in a file a list, or the one.
        why: the reason of its range.
    """

    unit: Unit
    help: str
    flag: str = ""
    metavar: str = ""
    least: float | None = None
    above: float | None = None
    most: float | None = None
    multiple_of: int = 1
    names: tuple[str, ...] = ()
    plugins: str = ""
    empty: bool = False
    several: bool = False
    why: str = ""

    def check(self, value: Any) -> None:
        """Raise ValueError, which says what was expected, for a value out of the range."""
        if self.several:
            if not isinstance(value, tuple):
                raise ValueError(f"expected {_WORDS[self.unit.held_as]} or a list, not {value!r}")
            for one in value:
                self._check_one(one)
            if len(set(value)) < len(value):
                raise ValueError(f"expected each once, not {', '.join(map(str, value))}")
            return
        self._check_one(value)

    def _check_one(self, value: Any) -> None:
        is_one: bool = isinstance(value, self.unit.held_as)
        if not is_one or (type(value) is bool and self.unit != Unit.FLAG):
            raise ValueError(f"expected {_WORDS[self.unit.held_as]}, not {value!r}")
        if self.empty and not value:
            return
        if self.names:
            if not self.plugins and value not in self.names:
                raise ValueError(f"expected {', '.join(self.names)}, not {value!r}")
            return
        # Each is asked for what must hold: of NaN, nothing does.
        fits = (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.multiple_of == 1 or value % self.multiple_of == 0)
        )
        if not fits:
            why = f": {self.why}" if self.why else ""
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            raise ValueError(f"expected {self._range()}, not {shown}{self.unit.written}{why}")

    def _range(self) -> str:
        if self.multiple_of > 1:
            return f"a multiple of {self.multiple_of}{self.unit.written}"
        unit = self.unit.written
        what = "a share " if self.unit == Unit.SHARE else ""
        if self.above is not None:
            most = "" if self.most is None else f" and up to {self.most:g}{unit}"
            return f"{what}above {self.above:g}{unit}{most}"
        most = " or more" if self.most is None else f" to {self.most:g}{unit}"
        return f"{what}{self.least:g}{unit if self.most is None else ''}{most}"


def option(default: ValueT, unit: Unit, text: str, **rest: Any) -> ValueT:
    """Return the field of an option; for `rest`, see `Option`."""
    found: Any = field(default=default, metadata={_OPTION: Option(unit=unit, help=text, **rest)})
    return found  # type: ignore[no-any-return]  # to a type checker, a field is its default


class Options:
    """A group of options: a frozen dataclass, each of its fields an `option`.

    Raises:
        OptionError: an option is out of its range.
    """

    __slots__ = ()

    def __post_init__(self) -> None:
        for name, one in options_of(type(self)).items():
            try:
                one.check(getattr(self, name))
            except ValueError as error:
                raise OptionError(name, str(error)) from None


_OF: dict[type[Options], Mapping[str, Option]] = {}


def options_of(group: type[Options]) -> Mapping[str, Option]:
    """Return the options of a group by the names of their fields."""
    if group not in _OF:
        found: tuple[Field[Any], ...] = fields(group)  # type: ignore[arg-type]  # each is one
        _OF[group] = {item.name: item.metadata[_OPTION] for item in found}
    return _OF[group]


def default_of(group: type[Options], name: str) -> Any:
    """Return what an option is where nobody sets it."""
    found: tuple[Field[Any], ...] = fields(group)  # type: ignore[arg-type]  # as above
    return next(item.default for item in found if item.name == name)


def key_of(name: str, one: Option) -> str:
    """Return what an option is called where its value carries its unit: `chunk_bytes` is chunk."""
    return name.removesuffix(one.unit.suffix)


def flag_of(name: str, one: Option) -> str:
    """Return an option's name on the command line: "--chunk"."""
    return "--" + (one.flag or key_of(name, one).replace("_", "-"))
