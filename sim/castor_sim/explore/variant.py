"""The explored code with one rule replaced, for as long as a schedule runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Patch:
    """A function or method of the policy, and what stands in its place.

    Attributes:
        owner: the module or class.
        name: of the function in it.
        make: returns the replacement, given what is there.
    """

    owner: Any
    name: str
    make: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Variant:
    """The policy as it is, or broken on purpose.

    Attributes:
        name: "right", or what is broken.
        what: which rule is missing or wrong, in one line.
        patches: what is replaced.
        asks: what is broken is what is done about what a user asks for: that is drawn, too.
    """

    name: str = "right"
    what: str = ""
    patches: tuple[Patch, ...] = ()
    asks: bool = False

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Have the patches in force."""
        kept = [(patch, patch.owner.__dict__[patch.name]) for patch in self.patches]
        try:
            for patch, original in kept:
                setattr(patch.owner, patch.name, patch.make(original))
            yield
        finally:
            for patch, original in kept:
                setattr(patch.owner, patch.name, original)


RIGHT = Variant()
"""The code as it runs in production."""
