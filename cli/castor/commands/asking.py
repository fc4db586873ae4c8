"""How commands ask something of a job by its store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from castor_configs.errors import InputError

if TYPE_CHECKING:
    from castor_runtime.stores import EtcdStore

AnswerT = TypeVar("AnswerT")

StoreUrl = Annotated[
    str, typer.Option(metavar="URL", envvar="CASTOR_STORE", help="etcd://HOST:PORT[,HOST:PORT]")
]


def say(text: str) -> None:
    """Tell the user in a line how far it is."""
    typer.echo(text)


async def ask(
    url: str, answer: Callable[[EtcdStore], Awaitable[AnswerT]], *, key: str = "--store"
) -> AnswerT:
    """Return what `answer` makes of a store, which is closed afterwards.

    Args:
        url: of the store.
        answer: asks it.
        key: the option that the store was named by.

    Raises:
        InputError: it cannot be asked, or `answer` says so.
    """
    from castor_policy.store import StoreUnavailableError
    from castor_runtime.stores import open_store

    store = open_store(url)
    try:
        return await answer(store)
    except StoreUnavailableError as error:
        raise InputError(f"the store cannot be asked: {error}", key=key) from error
    finally:
        await store.close()


def ask_store(url: str, job: str, answer: Callable[[EtcdStore], Awaitable[AnswerT]]) -> AnswerT:
    """Ask something of a job's store; return what came of it.

    Raises:
        InputError: see `ask`; also of a name that no job can have.
        typer.Exit: the user has had enough (130).
    """
    from castor_runtime.launcher.train_options import check_job_name, check_store

    check_store(url, embedded=False)
    check_job_name(job)
    try:
        return asyncio.run(ask(url, answer))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
