"""castor clean: give back checkpoint memory of jobs that are not alive on this machine."""

from __future__ import annotations

from typing import Annotated

import typer


def clean(
    job: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this job's; default: every job's.")
    ] = None,
) -> None:
    """Free checkpoint memory of jobs that are not alive on this machine, kept or left behind.

    Memory of a run that is alive is never touched. What is freed cannot be resumed.

    Example: castor clean --job gpt2
    """
    from castor_configs.readable import format_bytes
    from castor_runtime.arena.removal import free
    from castor_runtime.launcher.train_options import check_job_name

    if job is not None:
        check_job_name(job)
    freed = free(job)
    for one in freed:
        what = "kept after it gave up" if one.kept else "left by processes that died"
        run = f"run {one.run}" if one.run else "an unknown run"
        typer.echo(f"freed {format_bytes(one.bytes)} of job {one.job}, {run}: {what}")
    if not freed:
        typer.echo("nothing to free: no checkpoint memory of dead or ended jobs is here")
    elif len(freed) > 1:
        typer.echo(f"freed {format_bytes(sum(one.bytes for one in freed))} in all")
