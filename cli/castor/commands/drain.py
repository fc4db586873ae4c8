"""castor drain: have a machine of a job give its place to a standby."""

from __future__ import annotations

from typing import Annotated

import typer

from castor.commands.asking import StoreUrl, ask_store, say


def drain(
    node: Annotated[str, typer.Argument(metavar="NODE", help="Name of the machine's agent.")],
    *,
    job: Annotated[str, typer.Option(metavar="NAME", help="The job.")],
    store: StoreUrl,
    undo: Annotated[
        bool, typer.Option("--undo", help="Take back that it be drained, if it still waits.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Until it has left; else only ask for it.")] = True,
) -> None:
    """Take a machine out of a job at the end of an iteration: nothing is lost or trained twice.

    A standby takes its place and fetches its parts from the other replicas; then the drained agent
    ends, with exit code 93. Without a standby training goes on, a machine is asked for, and the
    drain waits for one. Ctrl-C ends this command alone; what was asked for stands.

    Example: castor drain node-3 --job gpt2 --store etcd://10.0.0.1:2379
    """
    from castor_runtime.launcher import asking

    if undo:
        ask_store(store, job, lambda opened: asking.take_back_drain(opened, job, node, say))
        return
    code = ask_store(
        store, job, lambda opened: asking.drain(opened, job, node, waits=wait, say=say)
    )
    raise typer.Exit(code)
