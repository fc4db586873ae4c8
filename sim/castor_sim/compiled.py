"""numba, with a cache that knows everything it was compiled from."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numba
import numpy as np

from castor_policy import membership, recovery


def _cache_folder() -> str:
    """Name a cache for exactly this source.

    numba looks only at the file of the function it caches, so that a change of the policy that is
    compiled into it would go unseen; the folder's name carries a digest of all of them.
    """
    digest = hashlib.sha256(numba.__version__.encode() + np.__version__.encode())
    files = [Path(module.__file__ or "") for module in (membership, recovery)]
    for file in [*files, *sorted(Path(__file__).parent.glob("*.py"))]:
        digest.update(file.read_bytes())
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return str(Path(home) / "castor" / "numba" / digest.hexdigest()[:16])


setattr(numba.config, "CACHE_DIR", _cache_folder())  # noqa: B010 - numba.config has no types


def compiled(function: Any) -> Any:
    """Compile with numba; the GIL is released, so that replications run on threads."""
    return numba.njit(cache=True, nogil=True, inline="never")(function)
