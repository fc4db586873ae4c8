"""The option of every command that writes files of a name that its user gave."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

Overwrite: TypeAlias = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace files that are there and that castor did not write."),
]
