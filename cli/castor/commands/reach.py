"""How commands reach a job from anywhere: its store, and what its agents want proved."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

from castor.commands.asking import StoreUrl, ask
from castor.commands.job_flags import with_flags
from castor_configs.errors import InputError

if TYPE_CHECKING:
    from castor_runtime.launcher.accounts import Accounts
    from castor_runtime.launcher.job_view import JobView
    from castor_runtime.stores import EtcdStore
    from castor_runtime.transport import Credentials

CommandT = TypeVar("CommandT", bound=Callable[..., None])
_T = TypeVar("_T")

JobName = Annotated[str, typer.Argument(metavar="JOB", help="The job's name.", show_default=False)]


def _flags(
    *,
    store: StoreUrl = "",
    secret: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", envvar="CASTOR_SECRET", help="The job's secret, which agents ask for."
        ),
    ] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Or, if agents have certificates, their CA.")
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="This host's certificate.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="And its key.")] = None,
) -> None:
    """Stand for the options; only its parameters are looked at."""


STDERR = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)

NOBODY: Mapping[str, None] = dict.fromkeys(("secret", "tls_ca", "tls_certificate", "tls_key"))
"""Where nobody has to be asked: what proves something to agents, left out."""


def refuse_store_alone(context: typer.Context) -> None:
    """Refuse a command line that names a store and no job of it; the environment may.

    Raises:
        InputError: it does.
    """
    source = context.get_parameter_source("store")
    if context.params["job"] is None and source is not None and source.name == "COMMANDLINE":
        raise InputError("--store and --job go together", key="--job")


def reaches_a_job(command: CommandT) -> CommandT:
    """Give a command the options by which a job is reached, in place of its `**flags`."""
    return with_flags(command, inspect.signature(_flags, eval_str=True).parameters.values())


@dataclass(frozen=True, slots=True)
class Reach:
    """A job that is to be reached.

    Attributes:
        store: URL of its store.
        job: its name.
        credentials: for its agents; None: they are not to be asked.
    """

    store: str
    job: str
    credentials: Credentials | None

    @classmethod
    def of(cls, job: str, given: Mapping[str, Any], *, asks: bool = True) -> Reach:
        """Return it as it was given on the command line.

        Args:
            job: its name.
            given: values by the parameters' names, others among them.
            asks: agents that live have to be asked: credentials must be there.

        Raises:
            InputError: an option is wrong, or missing.
        """
        from castor_runtime.agent.admission import credentials_of
        from castor_runtime.launcher.train_options import check_job_name, check_store

        if not given["store"]:
            raise InputError("name the job's store, etcd://HOST:PORT", key="--store")
        check_store(given["store"], embedded=False)
        check_job_name(job)
        files = (given["secret"], given["tls_ca"], given["tls_certificate"], given["tls_key"])
        if not any(files):
            if asks:
                raise InputError(
                    "give the job's secret, or certificates (--tls-ca, --tls-certificate, "
                    "--tls-key): its agents answer nobody else",
                    key="--secret",
                )
            return cls(given["store"], job, None)
        return cls(given["store"], job, credentials_of(*files))

    def run(self, ask_job: Callable[[EtcdStore, JobView], Awaitable[_T]]) -> _T:
        """Return what `ask_job` returns of the job as it stands.

        Raises:
            InputError: the store has no such job, does not answer, or a file cannot be used.
        """
        from castor_runtime.launcher.job_view import read_job

        async def asked(store: EtcdStore) -> _T:
            view, _ = await read_job(store, self.job)
            return await ask_job(store, view)

        return asyncio.run(ask(self.store, asked))


def name_untold(reach: Reach, view: JobView, accounts: Accounts) -> None:
    """Say on stderr which agents tell nothing, and why."""
    name_unreached(accounts.unreached, set())
    if reach.credentials is None and view.reports:
        STDERR.print(
            f"castor: {len(view.reports)} agents are alive: give --secret FILE to ask them",
            style="yellow",
        )


def name_unreached(unreached: Mapping[str, str], named: set[str]) -> None:
    """Say on stderr which agents cannot be asked; each once, until it can be again."""
    for name, reason in sorted(unreached.items()):
        if name not in named:
            STDERR.print(f"castor: {name} cannot be asked: {reason}", style="yellow")
    named.clear()
    named.update(unreached)
