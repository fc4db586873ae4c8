"""Importers: published failure data, as its authors' files hold it, into Castor's traces.

Each returns an `Imported`: the trace, the malformed rows left out, the number of rows read.
A malformed row is an `InputError` with its line unless `skip_bad` is set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from castor_configs.plugins import Registry
from castor_traces.importers.acme import import_acme
from castor_traces.importers.bamboo import import_bamboo, import_bamboo_counts
from castor_traces.importers.infinitehbd import import_infinitehbd
from castor_traces.importers.lanl import import_lanl
from castor_traces.importers.philly import import_philly
from castor_traces.importers.published import Imported
from castor_traces.importers.titan import import_titan

__all__ = [
    "FORMATS",
    "IMPORTER_VERSION",
    "Imported",
    "import_acme",
    "import_bamboo",
    "import_bamboo_counts",
    "import_infinitehbd",
    "import_lanl",
    "import_philly",
    "import_titan",
]

#: Raise it whenever an importer makes another trace of the same file: cached ones then lapse.
IMPORTER_VERSION: Final = 1

FORMATS: Final[Registry[Callable[..., Imported]]] = Registry(
    "importers",
    {
        "acme": import_acme,
        "bamboo": import_bamboo,
        "bamboo-counts": import_bamboo_counts,
        "infinitehbd": import_infinitehbd,
        "lanl": import_lanl,
        "philly": import_philly,
        "titan": import_titan,
    },
    callable,
    "function from a path to castor_traces.importers.Imported",
)
"""The formats by name: those that were published, and those from outside."""
