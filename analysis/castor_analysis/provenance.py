"""Where a result comes from: what one needs to get the same numbers again."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from castor_policy.version import __version__

LIBRARIES = ("matplotlib", "numba", "numpy", "pydantic", "scipy", "simpy")


def provenance() -> dict[str, object]:
    """Return the versions of Castor and its libraries, the commit, and the machine."""
    return {
        "castor": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def commit() -> str | None:
    """Return the commit of the source checkout that runs, `+changes` if edited; None outside."""
    folder = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+changes", "--exclude=*"],  # noqa: S607
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        tracked = subprocess.run(  # noqa: S603
            ["git", "ls-files", "--error-unmatch", Path(__file__).name],  # noqa: S607
            cwd=folder,
            capture_output=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() if tracked.returncode == 0 else None
