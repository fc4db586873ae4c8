"""castor replay: feed what agents took in into the agents' machines as they are in this version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from castor_configs.errors import InputError

if TYPE_CHECKING:
    from castor_policy.journal.replay import Replayed

_PARTED = 1


def replay(
    logs: Annotated[
        list[Path],
        typer.Argument(
            metavar="LOG...",
            help="Journals (journal-LIFE.jsonl), agents' folders, run folders.",
            show_default=False,
        ),
    ],
    until: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Stop after line N of one journal."),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Print the machines' state then, as JSON.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a life, a line each.")
    ] = False,
) -> None:
    """Say whether agents would do again what they did.

    An agent's journal holds all that its worker and its root took in. It is
    given to them as they are in this version of Castor, and what they do is
    held against what was done, exactly. Exit code 1 if they part, with the
    line, the event, and what is done now in place of what was done then.

    Example: castor replay out/train-gpt2
    """
    from castor_analysis.journals import account, document, found, replayed

    files = found(logs)
    if show and as_json:
        raise InputError("give --show or --json: both print JSON")
    if len(files) > 1 and (until is not None or show):
        raise InputError(f"--until and --show take one journal; there are {len(files)} here")
    talks = show or as_json
    lives = parted = 0
    for file in files:
        typer.echo(f"{file}", err=talks)
        for told in replayed(file, until):
            lives += 1
            parted += told.parting is not None
            typer.echo("\n".join(account(told)), err=talks)
            if as_json:
                typer.echo(json.dumps(document(file, told)))
            if show:
                _show(told)
    if lives > 1:
        typer.echo(f"{lives} lives: {lives - parted} the same, {parted} part", err=talks)
    if parted:
        raise typer.Exit(_PARTED)


def _show(told: Replayed) -> None:
    from castor_analysis.journals import state

    typer.echo(json.dumps(state(told), indent=1))
