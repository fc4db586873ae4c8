"""castor resume: go on with a run that gave up, from the checkpoint memory that it keeps."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from castor.commands.train import run_to_end
from castor_configs.errors import InputError

if TYPE_CHECKING:
    from castor_records.run_record import RunRecord


def resume(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN_FOLDER", help="Default: the newest run under out/."),
    ] = None,
    max_attempts: Annotated[
        int | None,
        typer.Option(min=1, help="Recoveries in a row without progress before giving up again."),
    ] = None,
    memory_limit: Annotated[
        str, typer.Option(metavar="SIZE", help="Another limit than the run had, see castor train.")
    ] = "",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print failures and summary.")] = False,
) -> None:
    """Go on with a run that ended before it had finished, from what is kept in memory.

    It is the same run: it goes on from the newest iteration that is whole in memory, and its
    attempts are counted anew. Agents that you start yourself have to be started again, each on its
    own machine and by its own name.

    Example: castor resume out/train-gpt2
    """
    from castor_configs.option_tables import read_value
    from castor_policy.option import options_of
    from castor_runtime.launcher.run_folder import RunFolder, newest_run
    from castor_runtime.launcher.train_options import TrainOptions

    folder = RunFolder(run) if run is not None else newest_run()
    record = folder.run()
    if folder.result_file.exists() and folder.result().outcome == "finished":
        raise InputError("has finished: there is nothing to go on with", file=folder.path)
    spec = _spec(record, folder.path)
    if max_attempts is not None:
        recovery = replace(spec.recovery, max_attempts=max_attempts)
        spec = replace(spec, recovery=recovery)
    if memory_limit:
        limit = options_of(type(spec.memory))["limit_bytes"]
        try:
            limit_bytes = read_value(limit, memory_limit)
        except ValueError as error:
            raise InputError(str(error), key="--memory-limit") from error
        spec = replace(spec, memory=replace(spec.memory, limit_bytes=limit_bytes))
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


def _spec(record: RunRecord, folder: Path) -> Any:
    from castor_policy.agents.job_spec import JobSpec

    try:
        return JobSpec.from_json(json.dumps(record.spec))
    except ValueError as error:
        raise InputError(f"cannot be gone on with: {error}", file=folder / "run.json") from error
