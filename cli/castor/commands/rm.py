"""castor rm: take a job out of its store, so that its name can be used again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from castor.commands.asking import StoreUrl, ask_store
from castor_configs.errors import InputError

if TYPE_CHECKING:
    from castor_policy.store import Store


def rm(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Its name.")],
    *,
    store: StoreUrl,
) -> None:
    """Take a job that no agent lives of any more out of its store.

    Checkpoint memory that a host still keeps of it, `castor clean` frees there.

    Example: castor rm gpt2 --store etcd://10.0.0.1:2379
    """
    ask_store(store, job, lambda opened: _remove(opened, job))
    typer.echo(f"removed job {job}")


async def _remove(store: Store, job: str) -> None:
    from castor_policy.agents.store_keys import accounts_prefix, job_prefix
    from castor_policy.store import DeletePrefix, Txn
    from castor_runtime.launcher.job_view import read_view

    view = await read_view(store, job)
    if view.spec is None and not view.set_aside:
        raise InputError(f"the store has no job {job!r}", key="JOB")
    if view.reports:
        alive = ", ".join(sorted(view.reports))
        raise InputError(f"agents of job {job} are alive: {alive}; end them first", key="JOB")
    told = DeletePrefix(accounts_prefix(job))
    await store.transact(Txn((), (DeletePrefix(job_prefix(job)), told)))
