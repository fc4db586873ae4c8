"""A TOML document with the place of every key: read, extended, merged and overridden."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from castor_configs.errors import InputError
from castor_configs.nearest import nearest_name
from castor_configs.toml_lines import KeyPath, key_lines, parse_key

OVERRIDE_FILE = "--set"
"""Stands where a file would in the errors of an override."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was written: its file, or `--set`, and the line if there is one."""

    file: str
    line: int | None = None


@dataclass(slots=True)
class Document:
    """Nested tables, and where each of their keys was written."""

    data: dict[str, object] = field(default_factory=dict)
    places: dict[KeyPath, Place] = field(default_factory=dict)

    def overlay(self, other: Document) -> None:
        """Lay `other` over this: tables merge key by key, anything else replaces what was there."""
        self._merge(self.data, other.data, (), other.places)
        self.places |= other.places

    def place_of(self, path: KeyPath) -> Place | None:
        """Return where `path`, or the innermost table around it, was written."""
        for length in range(len(path), 0, -1):
            if place := self.places.get(path[:length]):
                return place
        return None

    def dotted(self, path: KeyPath) -> str:
        """Write `path` as `--set` takes it: a list's element by its name where that is unique."""
        value: object = self.data
        parts: list[str] = []
        for step in path:
            if isinstance(value, list) and isinstance(step, int):
                names = _names(value)
                value = value[step] if step < len(value) else None
                name = names[step] if step < len(names) else None
                parts.append(name if name and names.count(name) == 1 else str(step))
            else:
                value = value.get(step) if isinstance(value, dict) else None
                parts.append(str(step))
        return ".".join(parts)

    def set(self, names: Sequence[str], value: object, *, file: str = OVERRIDE_FILE) -> None:
        """Put `value` at the dotted key `names`, making the tables on the way.

        `file` is what stands where a file would in the errors about it.

        In a list of tables a step is an index, or the `name` of an entry.

        Raises:
            InputError: a step leads into something that is no table and no list, or names no entry.
        """
        target: object = self.data
        path: KeyPath = ()
        for position, name in enumerate(names):
            last = position == len(names) - 1
            if isinstance(target, list):
                step: str | int = _entry(target, name, ".".join(names[:position]))
            elif isinstance(target, dict):
                step = name
                if not last:
                    target.setdefault(name, {})
            else:
                raise InputError(
                    "no such key: it is a single value, not a table",
                    file=OVERRIDE_FILE,
                    key=".".join(names[:position]),
                )
            path = (*path, step)
            if last:
                target[step] = value  # type: ignore[index]  # a list's step is an int, a table's a str
            else:
                target = target[step]  # type: ignore[index]  # as above
        self._forget(path)
        self.places[path] = Place(file)

    def _merge(
        self,
        into: dict[str, object],
        other: Mapping[str, object],
        path: KeyPath,
        places: Mapping[KeyPath, Place],
    ) -> None:
        for key, value in other.items():
            here = (*path, key)
            held = into.get(key)
            if isinstance(held, dict) and isinstance(value, dict):
                self._merge(held, value, here, places)
            else:
                self._forget(here)
                into[key] = value

    def _forget(self, path: KeyPath) -> None:
        for key in [key for key in self.places if key[: len(path)] == path]:
            del self.places[key]


def read_document(path: str | Path) -> Document:
    """Read a TOML file, laid over the file that its top-level `extends` names, if it does.

    `extends` is relative to the file that holds it, and may go on: a cycle is an error.

    Raises:
        InputError: a file is missing, unreadable, not UTF-8, not TOML, or extends itself.
    """
    return _read_extending(Path(path), ())


def apply_overrides(document: Document, overrides: Sequence[str]) -> list[InputError]:
    """Apply each `key.sub=value`, the value read as TOML if it is, as text if not.

    Returns:
        One error for each override that could not be applied.
    """
    faults: list[InputError] = []
    for override in overrides:
        key, equals, written = override.partition("=")
        if not equals or not key.strip():
            message = f'expected key=value, such as cluster.machines=16, not "{override}"'
            faults.append(InputError(message, file=OVERRIDE_FILE))
            continue
        try:
            names = parse_key(key.strip())
        except ValueError:
            names = tuple(part.strip() for part in key.split("."))
        try:
            document.set(names, _override_value(written.strip()))
        except InputError as fault:
            faults.append(fault)
    return faults


def _override_value(written: str) -> object:
    try:
        document = tomllib.loads(f"value = {written}")
    except (ValueError, RecursionError):
        return written
    return document["value"] if len(document) == 1 else written


def _read_extending(path: Path, above: tuple[Path, ...]) -> Document:
    resolved = path.resolve()
    if resolved in above:
        chain = " -> ".join(file.name for file in (*above, resolved))
        raise InputError(f"files extend each other in a circle: {chain}", file=path, key="extends")
    document = _read_one(path)
    if "extends" not in document.data:
        return document
    parent = document.data.pop("extends")
    place = document.places.pop(("extends",))
    if not isinstance(parent, str):
        raise InputError(
            'expected the path of a TOML file in quotes, such as "other.toml"',
            file=place.file,
            line=place.line,
            key="extends",
        )
    parent_path = path.parent / parent
    if not parent_path.is_file():
        raise InputError(
            f'no such file: "{parent}" (looked beside {path.name})',
            file=place.file,
            line=place.line,
            key="extends",
        )
    extended = _read_extending(parent_path, (*above, resolved))
    extended.overlay(document)
    return extended


def _read_one(path: Path) -> Document:
    if path.is_dir():
        raise InputError("expected a TOML file; this is a folder", file=path)
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        raise InputError("no such file", file=path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError("not UTF-8 text, as TOML must be", file=path, line=line) from None
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise InputError("not valid TOML: nested too deeply", file=path) from None
    except ValueError as error:
        raise _syntax_error(path, text, str(error)) from None
    places = {key: Place(str(path), line) for key, line in key_lines(text).items()}
    return Document(data, places)


def _syntax_error(path: Path, text: str, reason: str) -> InputError:
    position = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", reason)
    if position is None:
        return InputError(f"not valid TOML: {reason}", file=path)
    line = int(position[1]) if position[1] else text.count("\n") + 1
    where = f"column {position[2]}" if position[2] else "end of file"
    return InputError(
        f"not valid TOML: {reason[: position.start()]} ({where})", file=path, line=line
    )


def _names(entries: Sequence[object]) -> list[str | None]:
    found = [entry.get("name") if isinstance(entry, dict) else None for entry in entries]
    return [name if isinstance(name, str) else None for name in found]


def _entry(entries: Sequence[object], step: str, key: str) -> int:
    names = _names(entries)
    if names.count(step) == 1:
        return names.index(step)
    if step.isdecimal() and int(step) < len(entries):
        return int(step)
    known = [name for name in names if name]
    near = nearest_name(step, known)
    hint = f"; did you mean `{near}`?" if near else ""
    choice = f": {', '.join(known)}" if known else f", numbered from 0 to {len(entries) - 1}"
    listed = f"it has {len(entries)} entries{choice}" if entries else "it is an empty list"
    raise InputError(f"no entry `{step}`{hint} ({listed})", file=OVERRIDE_FILE, key=key)
