"""castor figures --calibration: how the simulator was fitted, and how well it predicts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from paper_figures.calibration import Prediction

FITTED = (
    "compute_efficiency",
    "collective_efficiency",
    "checkpoint_efficiency",
    "copy_efficiency",
    "gradient_check",
)


def print_calibration(*, as_json: bool) -> None:
    """Fit both of the paper's clusters, and print parameters, held-out and leave-one-out errors."""
    from paper_figures.calibration import MODELS, checks, fitted_cluster, leave_one_out

    with Console(stderr=True).status("fitting"):
        document: dict[str, dict[str, Any]] = {
            name: {
                "fitted": _figures(fitted_cluster(name).calibration.model_dump()),
                "checks": [_as_json(found) for found in checks(name)],
                "leave_one_out": [_as_json(found) for found in leave_one_out(name)],
            }
            for name in MODELS
        }
    if as_json:
        typer.echo(json.dumps(document, indent=2, allow_nan=False))
        return
    console = Console(highlight=False)
    for name, found in document.items():
        parameters = ", ".join(f"{key} {value:.4g}" for key, value in found["fitted"].items())
        console.print(f"[bold]{name}[/bold]: {parameters}")
        console.print(_table(found["checks"], found["leave_one_out"]))
        console.print(_worst("held-out bars", [one for one in found["checks"] if one["held_out"]]))
        console.print(_worst("leave-one-out", found["leave_one_out"]) + "\n")


def _figures(calibration: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(calibration[key]) for key in FITTED}


def _as_json(found: Prediction) -> dict[str, Any]:
    return {**asdict(found), "error": found.error}


def _table(checks: Iterable[Mapping[str, Any]], left_out: Iterable[Mapping[str, Any]]) -> Table:
    table = Table(caption="* held out of the fit; left out: error of a fit to all other models")
    table.add_column("Model")
    table.add_column("Quantity")
    for heading in ("Paper (s)", "Simulated (s)", "Error", "Left out"):
        table.add_column(heading, justify="right")
    for one, other in zip(checks, left_out, strict=True):
        table.add_row(
            one["model"],
            one["quantity"],
            f"{one['paper']:.1f}",
            f"{one['ours']:.2f}",
            f"{one['error']:+.1%}{'*' if one['held_out'] else ' '}",
            f"{other['error']:+.1%}",
        )
    return table


def _worst(name: str, found: Sequence[Mapping[str, Any]]) -> str:
    errors = sorted(abs(one["error"]) for one in found)
    middle = (errors[(len(errors) - 1) // 2] + errors[len(errors) // 2]) / 2
    return f"{name}: median error {middle:.1%}, worst {errors[-1]:.1%}, of {len(errors)}"
