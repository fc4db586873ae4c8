"""Settings that hold for every test."""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib as mpl
from hypothesis import settings

mpl.use("Agg")

# A loaded machine must not fail a property by its clock, and CI must draw what a desk drew.
settings.register_profile("castor", deadline=None, derandomize=True)
settings.load_profile("castor")

# Imported traces and compiled kernels are cached; the tests use what a user would, unless told.
_SHARED = Path(__file__).resolve().parents[2] / "shared" / "traces"
if "CASTOR_TRACES" not in os.environ and _SHARED.is_dir():
    os.environ["CASTOR_TRACES"] = str(_SHARED)
