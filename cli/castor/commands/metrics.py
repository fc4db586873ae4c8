"""castor metrics: what Prometheus and Grafana need to watch jobs."""

from __future__ import annotations

import typer

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
