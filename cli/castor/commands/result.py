"""castor result: what a job came to, or has come to so far, as any machine can ask for it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from castor.commands.reach import JobName, Reach, name_untold, reaches_a_job
from castor_configs.errors import InputError

if TYPE_CHECKING:
    from castor_policy.store import Store
    from castor_records.result import Result
    from castor_runtime.launcher.job_view import JobView


@reaches_a_job
def result(context: typer.Context, job: JobName, **_flags: Any) -> None:
    """Print a job's result.json, as its launcher would write it, from what its agents tell.

    After its end the store has it, until `castor rm`; while it trains its agents are asked, and
    the outcome is "running". What only a launcher knows is empty: its command, its machine.

    Example: castor result gpt2 --store etcd://10.0.0.1:2379 --secret FILE > result.json
    """
    from castor_runtime.launcher.accounts import read_accounts
    from castor_runtime.launcher.told_result import told_result

    reach = Reach.of(job, context.params, asks=False)

    async def ask(store: Store, view: JobView) -> Result:
        accounts = await read_accounts(store, view, reach.credentials)
        name_untold(reach, view, accounts)
        try:
            return told_result(view, accounts)
        except ValueError as error:
            raise InputError(f"job {job}: {error}", key="JOB") from error

    typer.echo(json.dumps(reach.run(ask).to_json(), indent=2))
