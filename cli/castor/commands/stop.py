"""castor stop: end a job from anywhere that reaches its store."""

from __future__ import annotations

from typing import Annotated

import typer

from castor.commands.asking import StoreUrl, ask_store, say


def stop(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Its name.")],
    *,
    store: StoreUrl,
    checkpoint: Annotated[
        bool,
        typer.Option(
            "--checkpoint", help="At the next iteration, once it lies in the persistent tier."
        ),
    ] = False,
    wait: Annotated[bool, typer.Option(help="Until it has stopped; else only ask for it.")] = True,
) -> None:
    """Stop a job: its agents end, with exit code 93, and free their memory.

    With --checkpoint nothing is lost: castor resume goes on from that very iteration. Ctrl-C ends
    this command alone; what was asked for stands, and castor resume takes it back.

    Example: castor stop gpt2 --checkpoint --store etcd://10.0.0.1:2379
    """
    from castor_runtime.launcher import asking

    raise typer.Exit(
        ask_store(
            store,
            job,
            lambda open_store: asking.stop(
                open_store, job, checkpoint=checkpoint, waits=wait, say=say
            ),
        )
    )
