"""Functions that are named in options, so that who runs them need not import who has them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def named(function: str) -> Callable[..., Any]:
    """Import and return what "module:function" names.

    Raises:
        ImportError: there is no such module.
        AttributeError: it has no such function.
    """
    module, _, name = function.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found
