"""castor train: real training that survives failures, on emulated nodes of this machine."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from castor.commands.given_job import known_options, read_job, spec_of
from castor.commands.job_flags import takes_job_flags
from castor_configs.errors import InputError

if TYPE_CHECKING:
    from castor_lab.faults.fault import Fault
    from castor_runtime.launcher.train_options import TrainOptions

STDERR = Console(stderr=True, highlight=False, soft_wrap=True)
_LATE_SHOWN = 5
"""A replayed trace of a year has hundreds of faults that a run of minutes never meets."""


@takes_job_flags()
def train(
    context: typer.Context,
    script: Annotated[
        Path,
        typer.Argument(
            metavar="SCRIPT|JOB.toml",
            help="A DeepSpeed program, or a job file that names one; its options follow.",
        ),
    ],
    *,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the job: traffic.mu=0.8."),
    ] = None,
    kill: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND:TARGET@WHEN",
            help="Inject a failure: machine:2@10, rank:1@20, agent:0@5, root@7, store@9/10s, "
            "flip:0@8, stop:3@12, agentstop:1@6, forkstop:1@6, wipe@9/1s, storagehang@8/5s, "
            "storagefull@8/5s, twin:1@9, stranger@9; with --cluster also link:2@10/5s (cut), "
            "slow:1@10/10mbit; WHEN: iteration, 40s, recovery+0.5s.",
        ),
    ] = None,
    replay: Annotated[
        str | None, typer.Option(metavar="TRACE", help="Inject a failure trace: file or name.")
    ] = None,
    speedup: Annotated[
        float, typer.Option(metavar="X", help="The trace's time passes X times faster.")
    ] = 1.0,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Run on an emulated cluster: castor cluster up."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder; default out/train-JOB.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier run's result.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print failures and summary.")] = False,
    metrics: Annotated[
        bool,
        typer.Option(
            "--metrics", help="Each machine serves Prometheus metrics: castor metrics targets."
        ),
    ] = False,
    print_job: Annotated[
        bool, typer.Option("--print-job", help="Print the job as a job file, and stop.")
    ] = False,
    **_flags: str | bool | None,
) -> None:
    """Train through failures: iterations are checkpointed into other machines' memory.

    All options that are not Castor's go to SCRIPT, and all that follow a "--".

    Example: castor train examples/gpt2_tiny.py --iterations 30 --kill machine:2@10
    """
    from castor_configs.job_file import job_toml
    from castor_lab.faults.requested import requested_faults
    from castor_lab.pacing import with_paced_device
    from castor_runtime.launcher import train_options as checks

    given, job = read_job(context, script, changes)
    spec = with_paced_device(spec_of(given, job))
    if cluster is not None and (job.launch.agents, job.launch.store) != ("local", checks.EMBEDDED):
        raise InputError("has its own agents and its own store", key="--cluster")
    if print_job:
        typer.echo(job_toml(job), nl=False)
        return
    trace = None
    if replay is not None:
        from castor_traces.library import load_any

        trace = load_any(replay).trace
    options = checks.TrainOptions(
        spec=spec,
        out=out or Path("out") / f"train-{spec.job}",
        store=job.launch.store,
        standby=job.launch.standby,
        domains=checks.domain_names(job.launch),
        local_agents=job.launch.agents == "local",
        placed_by_agents=checks.is_placed_by_agents(job.launch),
        operator=job.launch.operator,
        metrics=metrics,
        overwrite=overwrite,
        command=("castor", *sys.argv[1:]),
        job_file=job_toml(job),
    )
    faults = requested_faults(kill or (), trace, speedup, spec, options.store, cluster or "")
    raise typer.Exit(
        run_to_end(options, known_options(context), faults=faults, cluster=cluster, quiet=quiet)
    )


def run_to_end(
    options: TrainOptions,
    castor_options: Sequence[str],
    *,
    faults: Sequence[Fault] = (),
    cluster: str | None = None,
    quiet: bool,
) -> int:
    """Run a job, say what it came to, and return the exit code.

    Args:
        options: the run.
        castor_options: those of the command, for one that was given to the script instead.
        faults: what shall fail.
        cluster: name of the emulated cluster to run on; None: on this machine.
        quiet: show only failures and the summary.

    Raises:
        InputError: the run, or its cluster, cannot be.
    """
    from castor_lab.emulated_cluster.network import Network
    from castor_lab.faults.injector import Injector
    from castor_lab.pacing import labelled
    from castor_runtime.launcher.near_miss import near_misses
    from castor_runtime.launcher.result_file import failure_tail, ranks_at_fault, write_result
    from castor_runtime.launcher.screen import print_summary
    from castor_runtime.launcher.training_run import TrainingRun

    console = Console(highlight=False, markup=False)
    options = labelled(options)
    network = None if cluster is None else Network(cluster)
    run = TrainingRun(
        options, console, quiet=quiet, site=network, observer=Injector(faults, network)
    )
    outcome = asyncio.run(run.run())
    result = write_result(run.folder, options, run.spec, outcome, run.kept)
    print_summary(console, result)
    console.print(f"details: {run.folder.result_file}", soft_wrap=True)
    for fault in outcome.not_injected[:_LATE_SHOWN]:
        _complain(f"{fault} was not injected: the run ended first", "yellow")
    if (more := len(outcome.not_injected) - _LATE_SHOWN) > 0:
        _complain(f"and {more} more faults, which result.json names", "yellow")
    if outcome.code:
        _complain(outcome.reason, "red")
    if run.kept is not None:
        _complain(run.kept.words(), "yellow")
    at_fault = ranks_at_fault(result.recoveries)
    if outcome.outcome in ("failed", "refused") and (found := failure_tail(run.folder, at_fault)):
        log, tail = found
        STDERR.print(f"the end of {log}:", markup=False)
        STDERR.print(tail, style="dim", markup=False)
        for hint in near_misses(tail, castor_options):
            _complain(hint, "yellow")
    if outcome.outcome == "interrupted":
        again = shlex.join(options.command)
        _complain(f"stopped; to start anew: {again}", "yellow")
    return outcome.code


def _complain(message: str, style: str) -> None:
    STDERR.print(f"castor: {message}", style=style, markup=False)
