"""A job as a command line gives it: what `castor train` and `castor run` have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from castor.commands.job_flags import given_flags
from castor_configs.job import JOB_FILE, Flag, Job

if TYPE_CHECKING:
    from castor_configs.job_file import GivenJob
    from castor_policy.agents.job_spec import JobSpec


def read_job(
    context: typer.Context,
    script: Path,
    changes: Sequence[str] | None,
    also: Sequence[Flag] = (),
) -> tuple[GivenJob, Job]:
    """Return what was given of a job, and the job that it comes to.

    Args:
        context: of a command that has a job's options; what it does not know is the script's.
        script: a training program, or a job file.
        changes: as `--set` takes them.
        also: options that the command has under names of its own.

    Raises:
        InputError: something of it is wrong; it names each fault's place.
    """
    from castor_configs.job_file import GivenJob
    from castor_runtime.launcher.train_options import check_script

    if script.suffix != JOB_FILE:
        check_script(script, known_options(context))
    given = GivenJob(script, changes or (), [*given_flags(context), *also], context.args)
    return given, given.checked()


def spec_of(given: GivenJob, job: Job) -> JobSpec:
    """Return what the job is to its agents, once all of it can be.

    Raises:
        InputError: it cannot be; it names the place of what is at fault.
    """
    from castor_policy.option import OptionError
    from castor_runtime.launcher.storage_check import check_tiers
    from castor_runtime.launcher.train_options import check_launch, check_send, job_spec

    try:
        spec = job_spec(job)
        check_launch(job.launch)
        if job.launch.agents == "local":
            check_send(spec)
        check_tiers(spec.persistence.tiers)
    except OptionError as error:
        raise given.fault(error) from error
    return spec


def known_options(context: typer.Context) -> list[str]:
    """Return the names of a command's own options."""
    return [name for parameter in context.command.params for name in parameter.opts]
