"""The one line of `castor run`, as commands take it that bring it to hosts."""

from __future__ import annotations

from typing import Annotated

import typer

from castor_configs.errors import InputError

RunLine = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN_OPTIONS... SCRIPT", help="What `castor run` is given; see its --help."
    ),
]


def counts_of(line: list[str], what: str) -> tuple[int, int]:
    """Return how many hosts train, by the line, and how many there are with the spares.

    Args:
        line: after `castor run`.
        what: they are called here, such as "pods".

    Raises:
        InputError: the line does not say, or what cannot be.
    """
    from castor.commands.run import host_counts
    from castor_runtime.deployment.run_line import value_of

    nnodes = value_of(line, "--nnodes")
    if not nnodes:
        raise InputError(f"say how many {what}: MIN, or MIN:MAX with spares", key="--nnodes")
    return host_counts(nnodes)
