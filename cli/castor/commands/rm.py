"""castor rm: take a job out of its store, so that its name can be used again."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from castor_configs.errors import InputError


def rm(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Its name.")],
    *,
    store: Annotated[
        str, typer.Option(metavar="URL", envvar="CASTOR_STORE", help="etcd://HOST:PORT[,HOST:PORT]")
    ],
) -> None:
    """Take a job that no agent lives of any more out of its store.

    Checkpoint memory that a host still keeps of it, `castor clean` frees there.

    Example: castor rm gpt2 --store etcd://10.0.0.1:2379
    """
    from castor_runtime.launcher.train_options import check_job_name, check_store

    check_store(store, embedded=False)
    check_job_name(job)
    asyncio.run(_remove(store, job))
    typer.echo(f"removed job {job}")


async def _remove(url: str, job: str) -> None:
    from castor_policy.agents.store_keys import accounts_prefix, job_prefix
    from castor_policy.store import DeletePrefix, StoreUnavailableError, Txn
    from castor_runtime.launcher.job_view import read_view
    from castor_runtime.stores import open_store

    store = open_store(url)
    try:
        view = await read_view(store, job)
        if view.spec is None and not view.set_aside:
            raise InputError(f"the store has no job {job!r}", key="JOB")
        if view.reports:
            alive = ", ".join(sorted(view.reports))
            raise InputError(f"agents of job {job} are alive: {alive}; end them first", key="JOB")
        told = DeletePrefix(accounts_prefix(job))
        await store.transact(Txn((), (DeletePrefix(job_prefix(job)), told)))
    except StoreUnavailableError as error:
        raise InputError(f"the store cannot be asked: {error}", key="--store") from error
    finally:
        await store.close()
