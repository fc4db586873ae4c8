"""castor resume: go on with a job that was stopped, or that was given up."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from castor.commands.asking import ask_store, say
from castor.commands.reading import read_option
from castor.commands.train import run_to_end
from castor_configs.errors import InputError

if TYPE_CHECKING:
    from castor_policy.agents.job_spec import JobSpec
    from castor_records.run_record import RunRecord


def resume(
    run: Annotated[
        str,
        typer.Argument(
            metavar="JOB|RUN_FOLDER",
            help="With --store a job's name; else a run's folder, default the newest under out/.",
            show_default=False,
        ),
    ] = "",
    *,
    store: Annotated[
        str,
        typer.Option(
            metavar="URL", help="The job's, if it has no launcher: etcd://HOST:PORT[,HOST:PORT]"
        ),
    ] = "",
    max_attempts: Annotated[
        int | None,
        typer.Option(min=1, help="Recoveries in a row without progress before giving up again."),
    ] = None,
    memory_limit: Annotated[
        str, typer.Option(metavar="SIZE", help="Another limit than the run had, see castor train.")
    ] = "",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print failures and summary.")] = False,
) -> None:
    """Go on with a job that was stopped, or given up, before it had finished.

    With --store the job of that name is made runnable again: then start its hosts by the line
    that they were started by. It goes on from the memory that its hosts keep if it was given up,
    and from the persistent tier if it was stopped; a stop that is under way is taken back. What
    you change here (--max-attempts, --memory-limit) has to be changed in the hosts' lines, too.

    With a run folder its launcher is started again. It is the same run: it goes on from the newest
    iteration that is whole in memory, and its attempts are counted anew. Agents that you start
    yourself have to be started again, each on its own machine and by its own name.

    Example: castor resume gpt2 --store etcd://10.0.0.1:2379; castor resume out/train-gpt2
    """
    from castor_runtime.launcher.asking import changed

    limits = {"max_attempts": max_attempts, "limit_bytes": _limit_bytes(memory_limit)}
    if run and not Path(run).exists():
        store = store or os.environ.get("CASTOR_STORE", "")
    if store:
        _resume_job(run, store, lambda spec: changed(spec, **limits))
        return
    from castor_runtime.launcher.run_folder import RunFolder, newest_run
    from castor_runtime.launcher.train_options import TrainOptions

    if run and not Path(run).exists():
        raise InputError("there is no such run folder; of a job by its name give --store", key=run)
    folder = RunFolder(Path(run)) if run else newest_run()
    record = folder.run()
    if folder.result_file.exists() and folder.result().outcome == "finished":
        raise InputError("has finished: there is nothing to go on with", file=folder.path)
    spec = changed(_spec(record, folder.path), **limits)
    cluster = (record.cluster or {}).get("name")
    options = TrainOptions(
        spec=replace(spec, resumes=max(1, record.generation, spec.resumes)),
        out=folder.path,
        store=record.launched_store,
        standby=record.standby,
        local_agents=record.local_agents,
        operator=record.operator,
        command=("castor", *sys.argv[1:]),
        resume=True,
    )
    raise typer.Exit(run_to_end(options, (), cluster=cluster, quiet=quiet))


def _resume_job(job: str, store: str, change: Callable[[JobSpec], JobSpec]) -> None:
    from castor_runtime.launcher import asking

    if not job:
        raise InputError("which job of this store?", key="JOB")
    ask_store(store, job, lambda opened: asking.resume(opened, job, change, say))


def _limit_bytes(memory_limit: str) -> int | None:
    from castor_configs.option_tables import read_value
    from castor_policy.job_options import MemoryOptions
    from castor_policy.option import options_of

    if not memory_limit:
        return None
    limit = partial(read_value, options_of(MemoryOptions)["limit_bytes"])
    return int(read_option(limit, memory_limit, "--memory-limit"))


def _spec(record: RunRecord, folder: Path) -> Any:
    from castor_policy.agents.job_spec import JobSpec

    try:
        return JobSpec.from_json(json.dumps(record.spec))
    except ValueError as error:
        raise InputError(f"cannot be gone on with: {error}", file=folder / "run.json") from error
