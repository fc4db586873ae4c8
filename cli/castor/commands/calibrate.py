"""castor calibrate: from a measured run to the simulator's parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from castor.commands.overwriting import Overwrite
from castor.commands.reading import read_option

if TYPE_CHECKING:
    from castor_analysis.calibration.calibrate import Calibration

STDERR = Console(stderr=True, highlight=False)


def calibrate(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Folders of runs of one setting; several are repetitions."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Write the profile there (TOML)."),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="SIZE",
            help="What travels of one rank's checkpoint, where no run says it.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was fitted as JSON.")] = False,
) -> None:
    """Turn the event log of a run into a profile for `castor iterate --profile`.

    Take a run without checkpoints (castor train --scheme none); add one with a scheme, and what a
    checkpoint costs beside its transfers is fitted too.

    Example: castor calibrate out/baseline out/pipelined -o profile.toml
    """
    from castor_analysis.calibration.calibrate import calibrate as calibrated
    from castor_configs.atomic import output_file, write_text
    from castor_configs.dump import dump_toml
    from castor_records.run_files import RunFiles

    if output is not None:
        output_file(output, key="--out", overwrite=overwrite)
    found = calibrated([RunFiles(path) for path in runs], shard_bytes=_size(shard))
    if output is not None:
        write_text(output, dump_toml(found.profile))
    if as_json:
        typer.echo(json.dumps(calibration_document(found), indent=2, allow_nan=False))
    elif output is None:
        typer.echo(dump_toml(found.profile), nl=False)
    if not as_json:
        _print(found)
    if output is not None:
        STDERR.print(f"{output}: castor iterate EXPERIMENT --profile {output}", style="dim")


def _size(text: str | None) -> int:
    from castor_configs.quantities import parse_bytes

    return 0 if text is None else read_option(parse_bytes, text, "--shard")


def calibration_document(found: Calibration) -> dict[str, Any]:
    """Return what `--json` prints: what was fitted, in seconds, bytes and bits per second."""
    profile, fit = found.profile, found.fit
    measured_s, simulated_s = found.iteration_s
    return {
        "profile": profile.model_dump(mode="json", by_alias=True, exclude_none=True),
        "runs": list(found.runs),
        "collectives": {
            name: {
                "count": one.count,
                "bytes": one.size_bytes,
                "wire_share": one.wire_share,
                "is_known": one.is_known,
                "measured_s": one.measured_ns / 1e9,
                "fitted_s": one.fitted_ns / 1e9,
            }
            for name, one in sorted(fit.operations.items())
        },
        "alpha_s": fit.alpha_ns / 1e9,
        "bandwidth_bps": fit.bandwidth_bps,
        "collectives_error": fit.error,
        "iteration": {
            "count": found.iterations,
            "measured_s": measured_s,
            "simulated_s": simulated_s,
        },
        "not_fitted": dict(found.stated),
    }


def _print(found: Calibration) -> None:
    from castor_configs.readable import format_bps, format_bytes, format_seconds

    profile, fit = found.profile, found.fit
    table = Table(
        title=profile.name,
        caption=f"alpha {format_seconds(fit.alpha_ns / 1e9)} each, of "
        f"{format_bps(fit.bandwidth_bps)}; busy periods are off by {fit.error:.1%} (root mean "
        "square). A share is of the bytes, one way",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("collective", no_wrap=True)
    for heading in ("n", "bytes", "share", "measured", "fitted"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, one in sorted(fit.operations.items()):
        table.add_row(
            name,
            str(one.count),
            format_bytes(one.size_bytes),
            f"{one.wire_share:.3f} ({'ring' if one.is_known else 'fitted'})",
            format_seconds(one.measured_ns / 1e9),
            format_seconds(one.fitted_ns / 1e9),
        )
    STDERR.print(table)
    network, copy = profile.network, profile.copy_to_cpu
    rows = [
        ("compute", profile.compute),
        (
            "checkpoint link",
            f"{format_seconds(network.alpha / 1e9)} + bytes at {format_bps(network.bandwidth)}",
        ),
        ("copy to CPU memory", "no such hop" if copy is None else format_bps(copy.bandwidth)),
        ("part of a rank", format_bytes(profile.shard)),
        ("jitter of a computation", f"{profile.jitter:.1%}"),
        (
            "capture, commit, late",
            f"{format_seconds(profile.capture / 1e9)}, {format_seconds(profile.commit / 1e9)}, "
            f"{format_seconds(profile.late / 1e9)}",
        ),
    ]
    measured_s, simulated_s = found.iteration_s
    said = format_seconds(simulated_s)
    if measured_s:
        error = (simulated_s - measured_s) / measured_s
        said += f", measured {format_seconds(measured_s)} ({error:+.1%})"
    rows.append(("iteration as fitted", said))
    rows += sorted(found.stated.items())
    for name, value in rows:
        STDERR.print(f"{name:24} {value}", markup=False, soft_wrap=True)
