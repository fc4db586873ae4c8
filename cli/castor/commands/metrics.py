"""castor metrics: what Prometheus and Grafana need to watch jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from castor_configs.errors import InputError

metrics_app = typer.Typer(
    help="What Prometheus and Grafana need to watch jobs that Castor runs.", no_args_is_help=True
)


@metrics_app.command()
def rules() -> None:
    """Print the alert rules, a file for Prometheus' `rule_files`.

    Example: castor metrics rules > /etc/prometheus/castor-rules.yml
    """
    _print("castor-rules.yml")


@metrics_app.command()
def dashboard() -> None:
    """Print the dashboard, to be imported in Grafana.

    Example: castor metrics dashboard > castor.json
    """
    _print("castor-dashboard.json")


@metrics_app.command()
def targets(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]", help="Run folder; default: newest under out/.", show_default=False
        ),
    ] = None,
) -> None:
    """Print where the machines of a run on this computer serve metrics: for `file_sd_configs`.

    Example: castor metrics targets out/train-gpt2 > targets.json
    """
    from castor_records.run_files import RunFiles
    from castor_runtime.launcher.run_folder import newest_run

    folder = RunFiles(run) if run is not None else newest_run()
    folder.run()  # says so if it is none
    found = []
    for name in folder.agent_names():
        try:
            record = json.loads((folder.agent(name) / "agent.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue  # it is yet to start
        if where := record.get("metrics"):
            found.append(where)
    if not found:
        raise InputError(
            "none of its machines serves metrics: start it with castor train --metrics",
            file=folder.path,
        )
    typer.echo(json.dumps([{"targets": found}], indent=1))


@metrics_app.command(name="list")
def list_metrics() -> None:
    """List what each agent tells at /metrics: name, type, own labels, and what it is."""
    from castor_runtime.metrics.families import FAMILIES

    width = max(len(one.name) for one in FAMILIES)
    for one in FAMILIES:
        labels = f" by {', '.join(one.labels)}" if one.labels else ""
        typer.echo(f"{one.name:{width}}  {one.kind}{labels}: {one.help}")


def _print(name: str) -> None:
    from importlib.resources import files

    text = files("castor_runtime").joinpath("deploy", name).read_text(encoding="utf-8")
    typer.echo(text, nl=False)
