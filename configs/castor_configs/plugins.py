"""What is chosen by name, and what a stranger adds to it from outside, in one file and one line.

The line is `NAME = MODULE:OBJECT`, and it stands in one of two places:

- in a package's pyproject.toml, as an entry point of the group `castor.KIND`
  (`[project.entry-points."castor.schemes"]`): who installs the package has it everywhere;
- in the variable CASTOR_PLUGINS, for what is no package: `KIND.NAME = FILE.py:OBJECT`, several of
  them parted by ";" or by lines.

A variable and no option, because agents and trainers are processes of their own, forked by servers
or started on other machines: what a process inherits reaches them all, and every command, test and
notebook reads it alike. A file of a plugin is read anew by each process; a name is known, and told
in errors and help, without importing what it stands for.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Final, Generic, TypeVar

from castor_configs.errors import InputError
from castor_configs.nearest import nearest_name

T = TypeVar("T")

KINDS: Final = ("strategies", "schemes", "importers", "figures", "operators", "engines")
"""What can be added; each is the last part of its entry points' group."""

VARIABLE: Final = "CASTOR_PLUGINS"

_LINE = re.compile(r"\s*(\w+)\.([^\s=]+)\s*=\s*(\S.*?):([A-Za-z_]\w*)\s*")


@dataclass(frozen=True, slots=True)
class Plugin:
    """One thing from outside, by name.

    Attributes:
        kind: one of `KINDS`.
        name: what it is chosen by.
        place: the module, or FILE.py, that has it.
        attribute: its name there.
        source: the distribution that declares it, or the variable's name.
    """

    kind: str
    name: str
    place: str
    attribute: str
    source: str

    def __str__(self) -> str:
        return f"{self.name} = {self.place}:{self.attribute} ({self.source})"


class Registry(Mapping[str, T], Generic[T]):
    """The things of one kind by name: Castor's own in their order, then those from outside.

    Args:
        kind: one of `KINDS`.
        built_in: Castor's own.
        fits: whether an object is such a thing at all.
        expected: what it is to be, for who gave something else.
    """

    def __init__(
        self,
        kind: str,
        built_in: Mapping[str, T],
        fits: Callable[[object], bool],
        expected: str,
    ) -> None:
        self.kind = kind
        self.built_in = built_in
        self._fits = fits
        self._expected = expected

    def __getitem__(self, name: str) -> T:
        """Return what a name stands for.

        Raises:
            KeyError: nothing has that name.
            InputError: it is a plugin's that cannot be imported, or is something else.
        """
        plugin = self._outside().get(name)
        return self.built_in[name] if plugin is None else self._loaded(plugin)

    def __contains__(self, name: object) -> bool:
        return name in self.built_in or name in self._outside()

    def __iter__(self) -> Iterator[str]:
        return iter((*self.built_in, *self._outside()))

    def __len__(self) -> int:
        return len(tuple(iter(self)))

    def choose(self, name: str, key: str, also: tuple[str, ...] = ()) -> T:
        """Return what a user has chosen by name.

        Raises:
            InputError: nothing has that name (those that there are are told, `also` before them),
                or it is a plugin's that cannot be used.
        """
        if name not in self:
            raise InputError(not_one_of(name, (*also, *self)), key=key)
        return self[name]

    def _outside(self) -> Mapping[str, Plugin]:
        return declared(self.kind, tuple(self.built_in))

    def _loaded(self, plugin: Plugin) -> T:
        found = load(plugin)
        if not self._fits(found):
            raise InputError(f"plugin {plugin} is no {self._expected}", key=f"castor.{self.kind}")
        return found  # type: ignore[return-value]  # what `fits` has just said


def not_one_of(name: str, known: tuple[str, ...]) -> str:
    """Return the words for a name that is none of those known."""
    near = nearest_name(name, known)
    return f"expected one of {', '.join(known)}, not {name!r}" + (
        f"; did you mean {near}?" if near else ""
    )


def and_plugins(kind: str) -> str:
    """Return the names of a kind from outside, to end an option's help with: "" or ", a, b"."""
    try:
        return "".join(f", {name}" for name in declared(kind))
    except InputError:
        return ""  # whoever uses the option is told


def declared(kind: str, taken: tuple[str, ...] = ()) -> Mapping[str, Plugin]:
    """Return what strangers have declared of a kind, by name; nothing of it is imported yet.

    Args:
        kind: one of `KINDS`.
        taken: names that are Castor's own.

    Raises:
        InputError: a name is declared twice or taken, or the variable cannot be read.
    """
    found: dict[str, Plugin] = {}
    for plugin in (*_installed(kind), *_of_variable(kind)):
        other = found.setdefault(plugin.name, plugin)
        if plugin.name in taken or other is not plugin:
            whose = "Castor's own" if plugin.name in taken else str(other)
            raise InputError(
                f"two things have the name {plugin.name}: {plugin} and {whose}; give one of them "
                "another name, or take it out",
                key=f"castor.{kind}",
            )
    return found


def load(plugin: Plugin) -> object:
    """Import what a plugin is.

    Raises:
        InputError: it cannot be imported, or is not where it is said to be.
    """
    key = f"castor.{plugin.kind}"
    try:
        if plugin.place.endswith(".py"):
            module = module_from(Path(plugin.place))
        else:
            module = importlib.import_module(plugin.place)
        found: object = getattr(module, plugin.attribute)
    except Exception as error:
        why = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        raise InputError(f"plugin {plugin} cannot be imported: {why}", key=key) from error
    return found


def source_of(plugin: Plugin) -> Path:
    """Return the file that a plugin stands in; it is not imported, but the packages around it are.

    Raises:
        InputError: there is none.
    """
    try:
        found = None
        if plugin.place.endswith(".py"):
            found = plugin.place
        elif (spec := importlib.util.find_spec(plugin.place)) is not None:
            found = spec.origin
    except Exception as error:
        what = f"plugin {plugin} cannot be found: {type(error).__name__}: {error}"
        raise InputError(what, key=f"castor.{plugin.kind}") from error
    if found is None or not Path(found).is_file():
        what = f"plugin {plugin} cannot be found: there is no file of it"
        raise InputError(what, key=f"castor.{plugin.kind}")
    return Path(found)


@cache
def _installed(kind: str) -> tuple[Plugin, ...]:
    return tuple(_entry_points(kind))


def _entry_points(kind: str) -> Iterator[Plugin]:
    entries = importlib.metadata.entry_points(group=f"castor.{kind}")
    for entry in sorted(entries, key=lambda entry: (entry.name, entry.value)):
        source = entry.dist.name if entry.dist is not None else "installed"
        yield Plugin(kind, entry.name, entry.module, entry.attr, source)


def _of_variable(kind: str) -> Iterator[Plugin]:
    for line in re.split(r"[;\n]", os.environ.get(VARIABLE, "")):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if match is None or match[1] not in KINDS:
            raise InputError(
                f"expected KIND.NAME = MODULE:OBJECT or FILE.py:OBJECT, with a KIND out of "
                f"{', '.join(KINDS)}, not {line.strip()!r}",
                key=VARIABLE,
            )
        if match[1] == kind:
            yield Plugin(kind, match[2], match[3], match[4], VARIABLE)


class _AsWritten(SourceFileLoader):
    """Compiles what stands in the file, and leaves no `__pycache__` in the user's folder.

    A change within the second that keeps the file's size would be missed by way of a cache.
    """

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


_of_files: dict[tuple[str, int], ModuleType] = {}


def module_from(path: Path) -> ModuleType:
    """Return the module that a file of the user's is, read again only when the file has changed.

    Raises:
        InputError: there is no such file, or it raises something.
    """
    name = re.sub(r"\W", "_", f"castor_own_{path.resolve()}")
    loader = _AsWritten(name, str(path))
    specification = importlib.util.spec_from_file_location(name, path, loader=loader)
    if not path.is_file() or specification is None or specification.loader is None:
        raise InputError(f"there is no file {path}")
    written = (name, hash(path.read_bytes()))
    if (known := _of_files.get(written)) is not None:
        return known
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # pydantic looks a class's annotations up there
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{type(error).__name__}: {error}", file=path) from error
    _of_files[written] = module
    return module
