"""castor train: real training that survives failures, on emulated nodes of this machine."""

from __future__ import annotations

import asyncio
import secrets
import shlex
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from castor_configs import written_defaults
from castor_configs.errors import InputError
from castor_configs.plugins import and_plugins
from castor_policy import defaults

if TYPE_CHECKING:
    from castor_lab.faults.fault import Fault
    from castor_runtime.launcher.train_options import TrainOptions

STDERR = Console(stderr=True, highlight=False, soft_wrap=True)
_LATE_SHOWN = 5
"""A replayed trace of a year has hundreds of faults that a run of minutes never meets."""


class AgentsFrom(StrEnum):
    """Who starts the agents."""

    LOCAL = "local"
    EXTERNAL = "external"


def train(
    context: typer.Context,
    script: Annotated[
        Path, typer.Argument(metavar="SCRIPT", help="A DeepSpeed program; its options follow.")
    ],
    *,
    nodes: Annotated[int, typer.Option(help="Machines that train; here each is emulated.")] = 4,
    ranks_per_node: Annotated[int, typer.Option(help="Trainers on each machine.")] = 1,
    standby: Annotated[int, typer.Option(min=0, help="Machines that wait to replace one.")] = 0,
    replicas: Annotated[
        int, typer.Option(help="Copies of each shard in memory, its own included.")
    ] = 2,
    placement: Annotated[
        str, typer.Option(help="mixed, group, ring, or domains (with --domains).")
    ] = "mixed",
    domains: Annotated[
        str,
        typer.Option(
            metavar="SIZES", help="Consecutive machines of a rack: 4 of each, or 4,4,3 in turn."
        ),
    ] = "",
    checkpoint_every: Annotated[
        int, typer.Option(metavar="N", help="Iterations from one checkpoint in memory to the next.")
    ] = defaults.CHECKPOINT_EVERY,
    persist: Annotated[
        str, typer.Option(metavar="PATH", help="Folder for persistent checkpoints.")
    ] = "",
    persist_every: Annotated[
        str, typer.Option(metavar="TIME", help="How often.")
    ] = written_defaults.PERSIST_EVERY,
    persist_keep: Annotated[int, typer.Option(help="How many are kept.")] = 2,
    store: Annotated[
        str, typer.Option(metavar="URL", help="etcd://HOST:PORT, or embedded: start one.")
    ] = "embedded",
    job: Annotated[str, typer.Option(metavar="NAME", help="Default: after the script.")] = "",
    lease: Annotated[
        str, typer.Option(metavar="TIME", help="A machine silent for so long is lost.")
    ] = written_defaults.LEASE,
    hang: Annotated[
        str, typer.Option(metavar="TIME", help="A trainer whose process stands still so long.")
    ] = written_defaults.HANG,
    stall: Annotated[
        str,
        typer.Option(metavar="TIME", help="No sign of life for so long, on any rank, is a stall."),
    ] = written_defaults.STALL,
    startup: Annotated[
        str,
        typer.Option(metavar="TIME", help="Trainers may import, load and compile for so long."),
    ] = written_defaults.STARTUP,
    scheme: Annotated[
        str,
        typer.Option(
            help="When checkpoint traffic is sent: eager, pipelined, unpipelined, naive, blocking"
            f"{and_plugins('schemes')}; none: take no checkpoints."
        ),
    ] = "eager",
    mu: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of an idle span that is used.")
    ] = defaults.MU,
    buffer: Annotated[
        str,
        typer.Option(
            metavar="SIZE", help="Memory for received chunks; default: a chunk in each sub-buffer."
        ),
    ] = "",
    sub_buffers: Annotated[int, typer.Option(help="Sub-buffers that it is divided in.")] = (
        defaults.SUB_BUFFERS
    ),
    shortest_span: Annotated[
        str, typer.Option(metavar="TIME", help="Idle spans below it are left alone.")
    ] = written_defaults.SHORTEST_SPAN,
    paced_copy: Annotated[
        str,
        typer.Option(
            metavar="RATE",
            help="Without a GPU: a stand-in for its copy engine, such as 400mbit.",
        ),
    ] = "",
    chunk: Annotated[
        str, typer.Option(metavar="SIZE", help="Unit of transfer.")
    ] = written_defaults.CHUNK,
    memory_limit: Annotated[
        str, typer.Option(metavar="SIZE", help="Most memory for checkpoints on a machine.")
    ] = "",
    max_attempts: Annotated[
        int, typer.Option(help="Recoveries in a row that complete no iteration before giving up.")
    ] = 5,
    set_aside_after: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Failures of one machine in an hour after which a standby takes its place; "
            "0: never.",
        ),
    ] = 3,
    allow_changed_script: Annotated[
        bool,
        typer.Option(
            "--allow-changed-script",
            help="Agents that come later may have another script; training waits until all "
            "machines have the same.",
        ),
    ] = False,
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
    agents: Annotated[
        AgentsFrom, typer.Option(help="external: run castor agent on each machine yourself.")
    ] = AgentsFrom.LOCAL,
    operator: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="With external agents: who brings machines that are asked for, such as "
            f"command:./provide.sh; kinds: local, command{and_plugins('operators')}.",
        ),
    ] = "",
    cluster: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Run on an emulated cluster: castor cluster up."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder; default out/train-JOB.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier run's result.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print failures and summary.")] = False,
) -> None:
    """Train through failures: iterations are checkpointed into other machines' memory.

    All options that are not Castor's go to SCRIPT, and all that follow a "--".

    Example: castor train examples/gpt2_tiny.py --iterations 30 --kill machine:2@10
    """
    from castor_lab.faults.requested import requested_faults
    from castor_lab.pacing import PACED_DEVICE
    from castor_runtime.launcher import train_options as checks

    known = [name for parameter in context.command.params for name in parameter.opts]
    spec = checks.job_spec(
        job=job or checks.job_name(script, secrets.token_hex(3)),
        script=script,
        arguments=context.args,
        nodes=nodes,
        ranks_per_node=ranks_per_node,
        replicas=replicas,
        placement=placement,
        domains=domains,
        checkpoint_every=checkpoint_every,
        persist=persist,
        persist_every=persist_every,
        persist_keep=persist_keep,
        lease=lease,
        scheme=scheme,
        chunk=chunk,
        memory_limit=memory_limit,
        max_attempts=max_attempts,
        set_aside_after=set_aside_after,
        castor_options=known,
        mu=mu,
        buffer=buffer,
        sub_buffers=sub_buffers,
        shortest_span=shortest_span,
        device=PACED_DEVICE if paced_copy else "",
        paced_copy=paced_copy,
        allow_changed_script=allow_changed_script,
        hang=hang,
        stall=stall,
        startup=startup,
    )
    checks.check_store(store)
    local = agents == AgentsFrom.LOCAL
    if not local and standby:
        raise InputError("external agents are standbys by their own --standby", key="--standby")
    if operator:
        _check_operator(operator, local=local)
    if cluster is not None and not (local and store == checks.EMBEDDED):
        raise InputError("has its own agents and its own store", key="--cluster")
    trace = None
    if replay is not None:
        from castor_traces.library import load_any

        trace = load_any(replay).trace
    options = checks.TrainOptions(
        spec=spec,
        out=out or Path("out") / f"train-{spec.job}",
        store=store,
        standby=standby,
        domains=checks.domain_names(domains, nodes),
        local_agents=local,
        operator=operator,
        overwrite=overwrite,
        command=("castor", *sys.argv[1:]),
    )
    faults = requested_faults(kill or (), trace, speedup, spec, store, cluster or "")
    raise typer.Exit(run_to_end(options, known, faults=faults, cluster=cluster, quiet=quiet))


def _check_operator(url: str, *, local: bool) -> None:
    from castor_runtime.operators import LOCAL, check_operator

    check_operator(url)
    if local != (url == LOCAL):
        raise InputError(
            "local: goes with --agents local, all others with external", key="--operator"
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
