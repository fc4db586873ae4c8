"""numba, with a cache that knows everything it was compiled from."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numba
import numpy as np

from castor_policy import in_place, membership, period, recovery
from castor_traces.fetch import cache_folder


def _cache_folder() -> str:
    """Name a cache for exactly this source.

    numba looks only at the file of the function it caches, so that a change of the policy that is
    compiled into it would go unseen; the folder's name carries a digest of all of them.
    """
    digest = hashlib.sha256(numba.__version__.encode() + np.__version__.encode())
    files = [Path(module.__file__ or "") for module in (in_place, membership, period, recovery)]
    for file in [*files, *sorted(Path(__file__).parent.glob("*.py"))]:
        digest.update(file.read_bytes())
    folder = cache_folder().parent / "numba"
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        # A home that is read-only or missing must not keep the engine from running.
        folder = Path(tempfile.gettempdir()) / f"castor-numba-{os.getuid()}"
    return str(folder / digest.hexdigest()[:16])


setattr(numba.config, "CACHE_DIR", _cache_folder())  # noqa: B010 - numba.config has no types


def compiled(function: Any) -> Any:
    """Compile with numba, for functions that work on arrays given to them and allocate none.

    Counting references to the arrays at each inner call would take nine tenths of the time, so it
    is left out (`_nrt`); whoever calls keeps the arrays alive. The GIL is released: replications
    run on threads. No divisor here can be 0, so division goes unchecked.
    """
    options: dict[str, Any] = {"cache": True, "nogil": True, "forceinline": True, "_nrt": False}
    return numba.njit(error_model="numpy", **options)(function)


def needs_compiling() -> bool:
    """Return whether the first run on this machine is still to come; it compiles for seconds."""
    return not Path(_cache_folder()).is_dir()
