"""The castor command: one sub-command a job, errors without tracebacks."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from castor.commands.advise import advise
from castor.commands.agent import agent
from castor.commands.calibrate import calibrate
from castor.commands.certs import certs_app
from castor.commands.checkpoints import checkpoints_app
from castor.commands.clean import clean
from castor.commands.cluster import cluster_app
from castor.commands.compare import compare
from castor.commands.demo import demo
from castor.commands.doctor import doctor
from castor.commands.drain import drain
from castor.commands.events import events
from castor.commands.explore import explore
from castor.commands.figures import figures
from castor.commands.interval import interval
from castor.commands.iterate import iterate
from castor.commands.jobs import jobs
from castor.commands.kill import kill
from castor.commands.kubernetes import kubernetes
from castor.commands.launch import launch
from castor.commands.logs import logs
from castor.commands.metrics import metrics_app
from castor.commands.operate import operate
from castor.commands.placement import placement
from castor.commands.recovery import recovery
from castor.commands.replay import replay
from castor.commands.report import report
from castor.commands.result import result
from castor.commands.resume import resume
from castor.commands.rm import rm
from castor.commands.run import run
from castor.commands.schedule import schedule
from castor.commands.simulate import simulate
from castor.commands.slurm import slurm
from castor.commands.status import status
from castor.commands.stop import stop
from castor.commands.sweep import sweep
from castor.commands.trace import trace_app
from castor.commands.train import train
from castor_configs.errors import InputError
from castor_policy.version import __version__

app = typer.Typer(
    name="castor",
    help="Simulate and run training that recovers from in-memory checkpoints.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"castor {__version__}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Simulate and run training that recovers from in-memory checkpoints."""


app.command()(simulate)
app.command()(sweep)
app.command()(iterate)
app.command()(calibrate)
app.command()(schedule)
app.command()(compare)
app.command()(advise)
app.command()(demo)
app.command()(interval)
app.command()(placement)
app.command()(figures)
app.command()(explore)
# What is not Castor's own goes to the training program.
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(train)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(run)
# The line of castor run begins with the first word that is not such a command's own.
_LINE = {"ignore_unknown_options": True, "allow_interspersed_args": False}
app.command(context_settings=_LINE)(launch)
app.command(context_settings=_LINE)(slurm)
app.command(context_settings=_LINE)(kubernetes)
app.command()(doctor)
app.command()(stop)
app.command()(resume)
app.command()(drain)
app.command()(agent)
app.command()(operate)
app.command()(jobs)
app.command()(status)
app.command()(logs)
app.command()(events)
app.command()(result)
app.command()(kill)
app.command()(recovery)
app.command()(report)
app.command()(replay)
app.command()(rm)
app.command()(clean)

app.add_typer(trace_app, name="trace")
app.add_typer(cluster_app, name="cluster")
app.add_typer(certs_app, name="certs")
app.add_typer(metrics_app, name="metrics")
app.add_typer(checkpoints_app, name="checkpoints")


def main() -> None:
    """Run the command line; a fault in the input is one clear line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets a question mark, not a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app()
    except InputError as error:
        _refuse(str(error))
    except BrokenPipeError:
        # Whoever read the output has had enough; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _refuse(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _refuse(message: str) -> NoReturn:
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"castor: {message}", style="red", markup=False
    )
    sys.exit(2)
