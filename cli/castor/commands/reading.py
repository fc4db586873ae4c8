"""What is written on the command line, read: a mistake is the option's that it was written for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from castor_configs.errors import InputError

WrittenT = TypeVar("WrittenT")
ReadT = TypeVar("ReadT")


def read_option(read: Callable[[WrittenT], ReadT], written: WrittenT, key: str) -> ReadT:
    """Return what `read` makes of an option's value.

    Args:
        read: raises ValueError with what is wrong.
        written: as on the command line.
        key: the option, such as --store.

    Raises:
        InputError: it is wrong.
    """
    try:
        return read(written)
    except ValueError as error:
        raise InputError(str(error), key=key) from error
