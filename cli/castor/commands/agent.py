"""castor agent: what runs on each machine of a job that `castor train` has made."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from castor.commands.agent_flags import agent_options, takes_agent_flags
from castor.commands.reading import read_option


@takes_agent_flags
def agent(
    context: typer.Context,
    *,
    store: Annotated[str, typer.Option(metavar="URL", help="etcd://HOST:PORT[,HOST:PORT]")],
    job: Annotated[str, typer.Option(metavar="NAME", help="The job to join.")],
    standby: Annotated[
        bool, typer.Option("--standby", help="Fill a machine only when one is lost.")
    ] = False,
    allow_changed_script: Annotated[
        bool,
        typer.Option(
            "--allow-changed-script",
            help="Take part with another script than the job's; training waits until all "
            "machines have the same.",
        ),
    ] = False,
    wait: Annotated[
        str, typer.Option(metavar="TIME", help="For the job to appear in the store.")
    ] = "60s",
    **_flags: Any,
) -> None:
    """Run one machine of a job: its trainers, and the memory that holds checkpoints.

    Example: castor agent --store etcd://10.0.0.1:2379 --job gpt2 --listen 10.0.0.7 --secret FILE
    """
    from castor_configs.quantities import parse_seconds
    from castor_runtime.launcher.train_options import check_job_name, check_store

    check_store(store, embedded=False)
    check_job_name(job)
    wait_s = read_option(parse_seconds, wait, "--wait")
    also = {"standby": standby, "allow_changed_script": allow_changed_script, "wait_s": wait_s}
    options = agent_options(job, store, context.params, **also)
    from castor_runtime.agent.main import run_agent

    raise typer.Exit(run_agent(options))
