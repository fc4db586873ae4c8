"""Find a configuration by its path or its name: the user's own first, then the shipped ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

from castor_configs.errors import InputError
from castor_configs.nearest import nearest_name

ConfigKind: TypeAlias = Literal["clusters", "models", "experiments"]

_INSTALLED = Path("share", "castor", "configs")


def find_config(
    kind: ConfigKind, name_or_path: str | Path, *, relative_to: Path | None = None
) -> Path:
    """Return the file of a configuration, given by path or by name.

    A path that exists wins, taken from the folder `relative_to` first (where a file that refers to
    another stands), then from the current folder. Otherwise `<kind>/<name>.toml` is looked for
    beside the folder `relative_to`, in `configs` under the current folder, in the source checkout,
    and in what the installed package carries.

    Args:
        kind: which folder of configurations a name is looked for in.
        name_or_path: "p4d", "my/cluster.toml".
        relative_to: a folder, if the name or path was written in a file there.

    Raises:
        InputError: there is none; names the nearest match and what is available.
    """
    written = str(name_or_path)
    path = Path(name_or_path).expanduser()
    bases = [Path()] if relative_to is None else [relative_to, Path()]
    if written:
        for base in bases:
            if (base / path).is_file():
                return base / path
    folders = list(_folders(kind, relative_to))
    looks_like_a_path = len(path.parts) > 1 or path.suffix == ".toml"
    if not looks_like_a_path:
        for folder in folders:
            if (found := folder / f"{written}.toml").is_file():
                return found
    names = available_configs(kind, relative_to=relative_to)
    near = nearest_name(path.stem, names)
    hint = f"; did you mean `{near}`?" if near else ""
    available = f"available: {', '.join(names)}, or" if names else "expected"
    what = "no such file" if looks_like_a_path else f"no {kind.removesuffix('s')} of this name"
    raise InputError(f"{what}{hint} ({available} the path of a TOML file)", file=written or '""')


def available_configs(kind: ConfigKind, *, relative_to: Path | None = None) -> tuple[str, ...]:
    """Return the names that `find_config` knows, in order."""
    folders = _folders(kind, relative_to)
    return tuple(sorted({file.stem for folder in folders for file in folder.glob("*.toml")}))


def _folders(kind: ConfigKind, relative_to: Path | None) -> Iterator[Path]:
    if relative_to is not None:
        yield relative_to.resolve().parent / kind
    yield Path("configs") / kind
    room = Path(__file__).resolve().parent
    yield room.parent / kind
    # pip install, with --user, --target or --prefix or none: data lie under some folder above.
    for folder in (*room.parents, Path(sys.prefix)):
        yield folder / _INSTALLED / kind
