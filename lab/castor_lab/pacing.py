"""Waits that stand for a GPU's work: which runs have them, and what is said of that.

Imports no torch: a command labels its run with it before anything is started.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from castor_policy.agents.job_spec import JobSpec
from castor_runtime.launcher.train_options import TrainOptions

PACED_DEVICE: Final = "castor_lab.paced_device:paced_device"
"""The job's `device` that stands for a GPU's copy engine."""

_PACED_LAYERS: Final = "--paced-layer-ms"
"""The option of Castor's programs that replaces arithmetic by waits."""


def with_paced_device(spec: JobSpec) -> JobSpec:
    """Return the job with the device that paces copies, if it asks for them and names no other."""
    if not spec.device.paced_copy_bps or spec.device.maker:
        return spec
    return replace(spec, device=replace(spec.device, maker=PACED_DEVICE))


def labelled(options: TrainOptions) -> TrainOptions:
    """Return `options` with what has to be said of their run, if waits stand for work in it."""
    spec, notes = options.spec, []
    if any(argument.partition("=")[0] == _PACED_LAYERS for argument in spec.arguments):
        notes.append("compute is paced: layers wait instead of computing")
    if spec.device.paced_copy_bps:
        notes.append("copies to CPU memory are paced: a stand-in for a GPU's copy engine")
    return replace(options, compute="paced" if notes else "real", notes=tuple(notes))
