"""castor operate: bring machines to a job, wherever its launcher is."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from castor_configs.plugins import and_plugins

if TYPE_CHECKING:
    from castor_runtime.operators.protocol import JobToJoin

STDERR = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


def operate(
    operator: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            help="Who brings them, such as command:./provide.sh; kinds: command"
            f"{and_plugins('operators')}.",
        ),
    ],
    *,
    store: Annotated[str, typer.Option(metavar="URL", help="etcd://HOST:PORT[,HOST:PORT]")],
    job: Annotated[str, typer.Option(metavar="NAME", help="The job.")],
    secret: Annotated[
        Path, typer.Option(metavar="FILE", help="The job's secret, for the machines' agents.")
    ],
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Logs; default out/operator-JOB.")
    ] = None,
) -> None:
    """Serve a job's requests for machines until it ends; what `castor train --operator` does.

    Start it anywhere that reaches the store, and again whenever it has died: no request is served
    twice, however many serve.

    Example: castor operate command:./provide.sh --store etcd://10.0.0.1:2379 --job gpt2
    --secret secret
    """
    from castor_configs.errors import InputError
    from castor_runtime.launcher.train_options import check_job_name, check_store
    from castor_runtime.operators import LOCAL, check_operator
    from castor_runtime.operators.protocol import JobToJoin

    check_store(store, embedded=False)
    check_job_name(job)
    check_operator(operator)
    if operator == LOCAL:
        raise InputError("goes with castor train, which starts them itself", key=LOCAL)
    if not secret.is_file():
        raise InputError(f"there is no file {secret}", key="--secret")
    to_join = JobToJoin(
        job=job,
        run="",
        store=store,
        secret=secret,
        folder=folder or Path("out") / f"operator-{job}",
    )
    raise typer.Exit(asyncio.run(_serve(operator, to_join)))


async def _serve(operator: str, job: JobToJoin) -> int:
    from castor_runtime.launcher.operating import Operating
    from castor_runtime.stores import open_store

    store = open_store(job.store)
    serving = asyncio.create_task(Operating(store, operator, job, STDERR.print).run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, serving.cancel)
    try:
        await serving
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM
    finally:
        await store.close()
    return 0
