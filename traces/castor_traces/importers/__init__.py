"""Importers: published failure data, as its authors' files hold it, into Castor's traces.

Each returns an `Imported`: the trace, the malformed rows left out, the number of rows read.
A malformed row is an `InputError` with its line unless `skip_bad` is set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

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

#: The published formats by name.
FORMATS: Final[Mapping[str, Callable[..., Imported]]] = MappingProxyType(
    {
        "acme": import_acme,
        "bamboo": import_bamboo,
        "bamboo-counts": import_bamboo_counts,
        "infinitehbd": import_infinitehbd,
        "lanl": import_lanl,
        "philly": import_philly,
        "titan": import_titan,
    }
)
