"""The reference of all events, made from their dataclasses: it stands in docs/formats.md.

Run as a program, it writes it there anew:

    python -m castor_records.reference docs/formats.md
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from castor_records.events.event import Event
from castor_records.events.fields import specs_of
from castor_records.events.line import KINDS

BEGIN: Final = "<!-- made by castor_records.reference: change the dataclasses, not this -->"
END: Final = "<!-- end of what castor_records.reference makes -->"


def reference() -> str:
    """Return every kind with its fields, their types and units, in Markdown."""
    lines = [BEGIN]
    for module, kinds in KINDS:
        words = " ".join(_paragraphs(module)[0].split())
        lines += ["", f"### {words.partition('.')[0].partition(';')[0].rstrip('.')}"]
        for kind in kinds:
            lines += ["", *_of_kind(kind)]
    return "\n".join([*lines, "", END])


def written_into(page: str) -> str:
    """Return a page with the reference between its marks brought up to date.

    Raises:
        ValueError: the page has no marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks the line {BEGIN} or {END}")
    return before + reference() + after


def meanings_of(kind: type) -> dict[str, str]:
    """Return what the docstring of a dataclass says of each field."""
    _, _, listed = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    for name, words in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", listed, re.MULTILINE):
        found[name] = " ".join(words.split()).rstrip(".")
    return found


def _of_kind(kind: type[Event]) -> Iterator[str]:
    said = [" ".join(one.split()) for one in _paragraphs(kind) if not one.startswith("Attributes:")]
    yield f"`{kind.kind}`: {' '.join(said)}"
    meanings = meanings_of(kind)
    if not specs_of(kind):
        return
    yield ""
    yield "| field | type | meaning |"
    yield "| --- | --- | --- |"
    for spec in specs_of(kind):
        words = f"{spec.words}; optional" if spec.is_optional else spec.words
        yield f"| `{spec.name}` | {words} | {meanings[spec.name]} |"


def _paragraphs(of: object) -> list[str]:
    return (inspect.getdoc(of) or "").split("\n\n")


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> None:
    """Bring the pages that are named up to date."""
    for name in arguments:
        page = Path(name)
        page.write_text(written_into(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
