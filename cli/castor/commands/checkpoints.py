"""castor checkpoints: what lies in a persistent tier, whether it is whole, and taking it out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from castor_configs.errors import InputError
from castor_configs.readable import format_bytes, format_seconds

if TYPE_CHECKING:
    from castor_runtime.persistent.listing import Listed
    from castor_runtime.persistent.manifest import Manifest
    from castor_runtime.persistent.tier import Tier

checkpoints_app = typer.Typer(
    help="List, verify and export persistent checkpoints.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)

_Where = Annotated[
    str,
    typer.Argument(
        metavar="URL",
        help="A folder, or s3://BUCKET/PREFIX, as --persist has it.",
        show_default=False,
    ),
]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Form(StrEnum):
    """What a checkpoint is exported as."""

    DEEPSPEED = "deepspeed"
    SAFETENSORS = "safetensors"


@checkpoints_app.command("list")
def list_(url: _Where, *, as_json: _AsJson = False) -> None:
    """List what is there: jobs, iterations, sizes, ages, and whether each is complete.

    Example: castor checkpoints list out/store
    """
    from castor_runtime.persistent.listing import listed

    with _tier(url) as tier:
        found = listed(tier)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=1))
        return
    if not found:
        typer.echo(f"there are no checkpoints in {tier.url}")
        return
    _print_table(found)


@checkpoints_app.command()
def verify(
    url: _Where,
    *,
    iteration: Annotated[
        int | None, typer.Option(metavar="N", help="This one only; default: all that are complete.")
    ] = None,
    as_json: _AsJson = False,
) -> None:
    """Read checkpoints against their checksums; exit with 1 if a file is damaged, and name it.

    Example: castor checkpoints verify s3://bucket/gpt2 --iteration 300
    """
    with _tier(url) as tier:
        found = _verified(tier, iteration)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=1))
    else:
        for one in found:
            if not one.faults:
                typer.echo(f"iteration {one.iteration}: {format_bytes(one.size_bytes)}, as written")
            for fault in one.faults:
                typer.echo(f"iteration {one.iteration}: {fault}", err=True)
        if not found:
            typer.echo(f"there are no checkpoints in {tier.url}")
    if any(one.faults for one in found):
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Verified:
    """What came of reading a checkpoint."""

    iteration: int
    size_bytes: int
    faults: list[str]


def _verified(tier: Tier, iteration: int | None) -> list[_Verified]:
    from castor_runtime.persistent.listing import Condition, listed
    from castor_runtime.persistent.storage import DAMAGED_SUFFIX, damaged_files, files_folder

    found = []
    wanted = [] if iteration is None else [iteration]
    for one in listed(tier) if iteration is None else []:
        if one.condition == Condition.COMPLETE:
            wanted.append(one.iteration)
        elif one.condition == Condition.DAMAGED and not one.name.endswith(DAMAGED_SUFFIX):
            found.append(_Verified(one.iteration, one.size_bytes, [one.why]))
    for number in wanted:
        manifest = _manifest(tier, number)
        folder = files_folder(tier, manifest.attempt)
        bad = [tier.at(f"{folder}/{name}") for name in damaged_files(tier, manifest)]
        faults = [f"{file} is not as it was written" for file in bad]
        found.append(_Verified(number, manifest.total_bytes, faults))
    return sorted(found, key=lambda one: one.iteration)


@checkpoints_app.command()
def export(
    url: _Where,
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder that gets it.")],
    iteration: Annotated[
        int | None, typer.Option(metavar="N", help="Which; default: the newest complete one.")
    ] = None,
    form: Annotated[
        Form,
        typer.Option(
            "--format", help="DeepSpeed's own checkpoint, or the weights in one file, in float32."
        ),
    ] = Form.DEEPSPEED,
) -> None:
    """Take a checkpoint out of its tier; nothing that is there is replaced.

    Example: castor checkpoints export s3://bucket/gpt2 --format safetensors --out weights
    """
    from castor_runtime.persistent.storage import CONVERTERS, complete_iterations, tag
    from castor_runtime.persistent.tier import FilesDamagedError

    with _tier(url) as tier:
        if iteration is None:
            complete = complete_iterations(tier)
            if not complete:
                raise InputError(f"there is no complete checkpoint in {tier.url}", key="URL")
            iteration = complete[-1]
        manifest = _manifest(tier, iteration)
        weights = out / "model.safetensors"
        made = [out / name for name in (tag(iteration), "latest", *CONVERTERS)]
        for path in made if form is Form.DEEPSPEED else [weights]:
            if path.exists():
                raise InputError(f"{path} is there already: give another folder", key="--out")
        # Only now: it imports for seconds.
        from castor_runtime.persistent.export import export_deepspeed, export_safetensors

        try:
            if form is Form.DEEPSPEED:
                export_deepspeed(tier, manifest, out)
                told = f'engine.load_checkpoint("{out}") loads it'
            else:
                count = export_safetensors(tier, manifest, weights)
                told = f"{count} tensors, float32, in {weights}"
        except FilesDamagedError as error:
            typer.echo(f"iteration {iteration} of {tier.url}: {error}", err=True)
            raise typer.Exit(1) from error
    typer.echo(f"iteration {iteration} of job {manifest.attempt.job}: {told}")


@contextmanager
def _tier(url: str) -> Iterator[Tier]:
    """Yield the tier; what is wrong with it is told as a fault of its URL."""
    from castor_runtime.persistent.address import require_usable, tier_at
    from castor_runtime.persistent.local_tier import LocalTier
    from castor_runtime.persistent.tier import TierError

    try:
        require_usable(url)
    except ValueError as error:
        raise InputError(str(error), key="URL") from error
    tier = tier_at(url)
    if isinstance(tier, LocalTier) and not tier.folder.is_dir():
        raise InputError(f"there is no folder {tier.url}", key="URL")
    try:
        yield tier
    except TierError as error:
        raise InputError(str(error), key="URL") from error


def _manifest(tier: Tier, iteration: int) -> Manifest:
    from castor_runtime.persistent.manifest import (
        DamagedCheckpointError,
        ForeignStorageError,
        read_manifest,
    )
    from castor_runtime.persistent.storage import tag

    try:
        manifest = read_manifest(tier, tag(iteration))
    except (DamagedCheckpointError, ForeignStorageError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    if manifest is None:
        raise InputError(f"there is no checkpoint {tier.at(tag(iteration))}", key="--iteration")
    return manifest


def _print_table(found: Sequence[Listed]) -> None:
    table = Table()
    for heading in ("Job", "Run"):
        table.add_column(heading, overflow="fold")
    for heading in ("Iteration", "Ranks", "Size", "Age"):
        table.add_column(heading, justify="right")
    table.add_column("Condition", overflow="fold")
    now_s = time.time()
    for one in found:
        table.add_row(
            one.job or "-",
            one.run[:8] or "-",
            str(one.iteration),
            str(one.ranks or "-"),
            format_bytes(one.size_bytes),
            format_seconds(max(0.0, now_s - one.written_s)) if one.written_s else "-",
            one.condition,
        )
    console = Console(highlight=False, markup=False)
    console.print(table)
    for one in found:
        if one.why:
            console.print(f"{one.name}: {one.why}", soft_wrap=True)
