"""Where in a TOML text each key stands: tomllib keeps no positions, and an error needs its line."""

from __future__ import annotations

import re
import tomllib
from typing import TypeAlias

KeyPath: TypeAlias = tuple[str | int, ...]
"""A key's place in a document: names of tables, and 0-based indices into lists."""

_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_KEY = rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*"
_HEADER = re.compile(rf"(\[\[?)[ \t]*({_KEY})[ \t]*\]\]?")
_ASSIGNMENT = re.compile(rf"({_KEY})[ \t]*=[ \t]*")
# Order matters: the long quotes first. A string is passed over as a whole, so nothing in it counts.
_TOKEN = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
    r"|\#[^\n]*|[\[\]{},\n]|[ \t\r]+|[^\s\"'\#\[\]{},]+",
    re.DOTALL,
)


def key_lines(text: str) -> dict[KeyPath, int]:
    """Return the 1-based line of every table, key and list element of a valid TOML `text`.

    Keys inside an inline table are left out: they stand on, or near, the line of what holds them.
    """
    lines: dict[KeyPath, int] = {}
    list_lengths: dict[KeyPath, int] = {}
    table: KeyPath = ()
    position, line = 0, 1
    while position < len(text):
        if header := _HEADER.match(text, position):
            *outer, last = parse_key(header[2])
            table = (*_resolve(tuple(outer), list_lengths), last)
            lines.setdefault(table, line)
            if header[1] == "[[":
                index = list_lengths.get(table, 0)
                list_lengths[table] = index + 1
                table = (*table, index)
                lines[table] = line
            end = header.end()
        elif assignment := _ASSIGNMENT.match(text, position):
            path = (*table, *parse_key(assignment[1]))
            for length in range(len(table) + 1, len(path) + 1):
                lines.setdefault(path[:length], line)
            end = _value_end(text, assignment.end(), line, path, lines)
        else:
            comment_or_space = _TOKEN.match(text, position)
            end = comment_or_space.end() if comment_or_space else position + 1
        line += text.count("\n", position, end)
        position = end
    return lines


def parse_key(written: str) -> tuple[str, ...]:
    """Return the names in a dotted TOML key, quotes removed.

    Raises:
        ValueError: it is no TOML key.
    """
    if "\n" in written:
        raise ValueError("a key stands on one line")
    document: object = tomllib.loads(f"{written} = 0")
    names: list[str] = []
    while isinstance(document, dict):
        name, document = next(iter(document.items()))
        names.append(name)
    return tuple(names)


def _resolve(names: tuple[str, ...], list_lengths: dict[KeyPath, int]) -> KeyPath:
    """A name of a list of tables in a header means that list's newest element."""
    path: KeyPath = ()
    for name in names:
        path = (*path, name)
        if path in list_lengths:
            path = (*path, list_lengths[path] - 1)
    return path


def _value_end(text: str, start: int, line: int, path: KeyPath, lines: dict[KeyPath, int]) -> int:
    """Return where the value at `start` ends; note the lines of its elements if it is a list."""
    position, depth, elements = start, 0, 0
    in_list, at_element = text.startswith("[", start), False
    while token := _TOKEN.match(text, position):
        word = token[0]
        if depth == 0 and word == "\n":
            break
        starts_value = not (word.isspace() or word[0] in "#,]}")
        if at_element and starts_value:
            lines[(*path, elements)] = line
            elements, at_element = elements + 1, False
        if word in "[{":
            depth += 1
            at_element = at_element or (in_list and depth == 1)
        elif word in "]}":
            depth -= 1
        elif word == "," and depth == 1:
            at_element = True
        line += word.count("\n")
        position = token.end()
    return position
